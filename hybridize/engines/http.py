"""One HTTP request at a time, past any proxy: open_url, and the errors of an answer."""

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from hybridize.core.errors import MachineError, RecipeError


class Refused(MachineError):
    """A server answered a request with an error, in its own words."""

    def __init__(self, url: str, status: int, message: str) -> None:
        """Keep the number of the answer, such as 400, and what the server says of it."""
        super().__init__(f"{url} answers {status}: {message}")
        self.status, self.message = status, message


class Connection:
    """One connection, to use in a `with` block: it is closed at the end, even in mid-answer."""

    def __init__(self, url: str, timeout: float) -> None:
        """Make ready to reach `url`; RecipeError where it is none, nothing is sent yet."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"{url!r} is not the address of a server, as http://localhost:8000.")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._url = url
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)

    def send(
        self, method: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> HTTPResponse:
        """Send a request and return the answer, its body unread.

        Raises:
            Refused: the answer is an error.
            MachineError: nothing answers.
        """
        try:
            self._connection.request(method, self._path, body, dict(headers or {}))
            answer = self._connection.getresponse()
            if answer.status >= 400:
                raise Refused(self._url, answer.status, _read_error(answer.read()))
            return answer
        except (OSError, HTTPException) as error:
            raise MachineError(
                f"{self._url} does not answer ({error or type(error).__name__}). "
                "Is the server running, and is this its address?"
            ) from error

    def __enter__(self) -> "Connection":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.close()


def get_json(url: str, *, timeout: float = 30, headers: Mapping[str, str] | None = None) -> Any:
    """Return the JSON value at a URL; raises like `Connection.send`."""
    return json.loads(get_text(url, timeout=timeout, headers=headers))


def get_text(url: str, *, timeout: float = 30, headers: Mapping[str, str] | None = None) -> str:
    """Return the text at a URL; raises like `Connection.send`."""
    with Connection(url, timeout) as connection:
        return connection.send("GET", headers=headers).read().decode("utf-8", "replace")


def _read_error(body: bytes) -> str:
    """Return the message of an error as OpenAI's API and its imitations give it, or the text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        return text[:500] or "no reason given"
    value = value.get("error", value) if isinstance(value, dict) else value
    value = value.get("message", value) if isinstance(value, dict) else value
    return str(value)[:500]
