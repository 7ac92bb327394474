"""A client of OpenAI's API on the standard library: completions, chat, streams, logprobs.

    client = Client("http://127.0.0.1:8000")
    print(client.complete("recall :", Sampling(max_tokens=20)).text)
    for piece in client.stream([1, 4, 17], Sampling(max_tokens=20)):
        print(piece.text, end="", flush=True)

Every call opens a connection of its own, so one client serves any number of threads.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

from hybridize.core.errors import MachineError
from hybridize.engines.answers import Completion, Piece, collect, read_piece
from hybridize.engines.http import Connection, get_json, get_text

Messages = Sequence[Mapping[str, str]]
Prompt = str | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn, and how long it may become."""

    max_tokens: int = 256
    """Tokens after which the answer is cut."""
    temperature: float = 0.0
    """0 takes the most likely token each time."""
    top_p: float = 1.0
    """Share of the probability to draw from, the most likely tokens first."""
    seed: int | None = None
    """Of the draws."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    logprobs: int | None = None
    """How many likely tokens to report at each place beside the one taken; None reports none."""
    ignore_end: bool = False
    """Whether to go on to `max_tokens` past a token that ends the text."""


class Client:
    """Speaks to one server.

    Args:
        url: of the server, without /v1.
        model: name of the model; None asks the server for its first.
        api_key: where the server wants one.
        fields: sent with each request beside OpenAI's own; see `Engine.request_fields`.
        timeout: seconds without a byte after which a request has failed.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        fields: Mapping[str, Any] | None = None,
        timeout: float = 600,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model, self._timeout = model, timeout
        self._fields = dict(fields or {})
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    @property
    def model(self) -> str:
        """Name of the model that is asked."""
        if self._model is None:
            names = self.list_models()
            if not names:
                raise MachineError(f"{self.url} serves no model. Start the server with one.")
            self._model = names[0]
        return self._model

    def list_models(self) -> list[str]:
        """Return the names of the models that are served."""
        return [str(model["id"]) for model in self.get("/v1/models")["data"]]

    def read_metrics(self) -> dict[str, float]:
        """Return the server's counters, as Prometheus reads them; labels are added up."""
        text = get_text(self.url + "/metrics", timeout=self._timeout, headers=self._headers)
        counters: dict[str, float] = {}
        for line in text.splitlines():
            name, _, value = line.partition("#")[0].rpartition(" ")
            if name:
                key = name.partition("{")[0].strip()
                counters[key] = counters.get(key, 0.0) + float(value)
        return counters

    def get(self, path: str) -> Any:
        """Return the JSON value that the server has at a path."""
        return get_json(self.url + path, timeout=self._timeout, headers=self._headers)

    def complete(self, prompt: Prompt, sampling: Sampling | None = None) -> Completion:
        """Return the continuation of a text, or of token ids.

        Raises:
            Refused: the server's answer is an error.
            MachineError: nothing answers, or the answer breaks off.
        """
        return collect(self._ask("/v1/completions", {"prompt": _plain(prompt)}, sampling, False))

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[Piece]:
        """Yield the continuation as it comes; raises like `complete`.

        Closing the iterator closes the connection, upon which the server stops working on it.
        """
        return self._ask("/v1/completions", {"prompt": _plain(prompt)}, sampling, True)

    def chat(self, messages: Messages, sampling: Sampling | None = None) -> Completion:
        """Return the answer to a conversation; raises like `complete`."""
        return collect(self._ask("/v1/chat/completions", {"messages": messages}, sampling, False))

    def stream_chat(self, messages: Messages, sampling: Sampling | None = None) -> Iterator[Piece]:
        """Yield the answer to a conversation as it comes; see `stream`."""
        return self._ask("/v1/chat/completions", {"messages": messages}, sampling, True)

    def _ask(
        self, path: str, asked: Mapping[str, Any], sampling: Sampling | None, streamed: bool
    ) -> Iterator[Piece]:
        is_chat = "messages" in asked
        body = {"model": self.model, **asked, **_describe(sampling or Sampling(), is_chat)}
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        text = json.dumps(body | self._fields).encode()
        with Connection(self.url + path, self._timeout) as connection:
            started = time.perf_counter()
            answer = connection.send("POST", text, self._headers)
            for value in _read_values(answer, self.url, streamed):
                yield read_piece(value, time.perf_counter() - started)


def _plain(prompt: Prompt) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _describe(sampling: Sampling, is_chat: bool) -> dict[str, Any]:
    """Return the fields of a request that say how the answer is drawn."""
    body: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.ignore_end:
        body["ignore_eos"] = True
    if sampling.logprobs is not None:
        counted = {"logprobs": True, "top_logprobs": sampling.logprobs}
        body |= counted if is_chat else {"logprobs": sampling.logprobs}
    return body


def _read_values(answer: HTTPResponse, url: str, streamed: bool) -> Iterator[dict[str, Any]]:
    """Yield the JSON values of an answer: one, or one an event."""
    try:
        if not streamed:
            yield json.loads(answer.read())
            return
        for line in answer:
            name, _, data = line.decode("utf-8").strip().partition(":")
            if name == "error":
                raise MachineError(f"{url} stopped in mid-answer: {data.strip()}")
            if name != "data":
                continue
            if data.strip() == "[DONE]":
                return
            yield _check(json.loads(data), url)
        raise MachineError(f"{url} broke off in mid-answer. Its log may say why.")
    except (OSError, HTTPException, ValueError) as error:
        raise MachineError(f"{url} broke off in mid-answer ({error}). Its log may say why.") from (
            error
        )


def _check(value: Any, url: str) -> dict[str, Any]:
    if "error" in value:
        raise MachineError(f"{url} stopped in mid-answer: {value['error']}")
    checked: dict[str, Any] = value
    return checked
