"""The HTTP side: paths, limits, streams, and readers that go away."""

import json
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hybridize import __version__
from hybridize.serving.answers import Part, Writer, write_error
from hybridize.serving.asked import Asked, BadRequest, Served, read_asked, read_body
from hybridize.serving.counters import Counters
from hybridize.serving.jobs import Ended, Job, Read
from hybridize.serving.loop import Loop
from hybridize.serving.sampling import Drawn
from hybridize.serving.text import TextMaker

MOST_BODY_BYTES = 8 * 2**20
"""Of a request; a larger one is refused unread."""
SECONDS_WITHOUT_BYTES = 60.0
"""A connection on which nothing moves for so long is closed."""
SECONDS_BETWEEN_LOOKS = 0.1
"""At whether the reader of an answer is still there."""


@dataclass(kw_only=True)
class App:
    """What all connections share."""

    served: Served
    loop: Loop
    counters: Counters
    ends: frozenset[int]
    """Tokens that end a text."""
    api_key: str | None = None
    models: dict[str, Any] = field(default_factory=dict)
    """What `/v1/models` says of the model beside its name."""
    in_work: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request while it is worked on."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wait_until_idle(self, seconds: float) -> None:
        """Return when no request is worked on any more, or after so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.in_work == 0, seconds)

    def _count(self, step: int) -> None:
        with self.changed:
            self.in_work += step
            self.changed.notify_all()


class Http(ThreadingHTTPServer):
    """A thread a connection; the threads end with the process."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.app: App | None = None
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of readers that go away; show the rest, which are bugs, and go on."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS_WITHOUT_BYTES
    server: Http

    def do_GET(self) -> None:
        """Answer health, models, metrics and version."""
        paths: dict[str, Callable[[], None]] = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/version": lambda: self._send(200, {"version": __version__}),
            "/v1/models": self._models,
        }
        self._guarded(paths)

    def do_POST(self) -> None:
        """Answer completions and chat."""
        paths: dict[str, Callable[[], None]] = {
            "/v1/completions": lambda: self._answer(is_chat=False),
            "/v1/chat/completions": lambda: self._answer(is_chat=True),
        }
        self._guarded(paths)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line a request: the counters have them."""

    @property
    def app(self) -> App:
        """What all connections share."""
        assert self.server.app is not None, "the server answers before it is ready"
        return self.server.app

    def _guarded(self, paths: dict[str, Callable[[], None]]) -> None:
        path = self.path.partition("?")[0].rstrip("/")
        with self.app.working():
            try:
                if path not in paths:
                    raise BadRequest(f"{self.command} {path} is not served here.", 404)
                if path.startswith("/v1/"):
                    self._check_key()
                paths[path]()
            except BadRequest as error:
                self._refuse(error.status, str(error))

    def _check_key(self) -> None:
        key = self.app.api_key
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if key is not None and not compare_digest(given.encode(), key.encode()):
            raise BadRequest("the API key is missing or wrong.", 401)

    def _refuse(self, status: int, message: str) -> None:
        self.app.counters.count_refused(status)
        # What is left of the request is not read: another cannot follow on this connection.
        self.close_connection = True
        self._send(status, write_error(status, message))

    def _send(self, status: int, value: Any, kind: str = "application/json") -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _health(self) -> None:
        failed = self.app.loop.failure is not None
        self._send(503 if failed else 200, {"status": "failed" if failed else "ok"})

    def _models(self) -> None:
        model = {"id": self.app.served.name, "object": "model", "owned_by": "hybridize"}
        self._send(200, {"object": "list", "data": [model | self.app.models]})

    def _metrics(self) -> None:
        self._send(200, self.app.counters.render(), "text/plain; version=0.0.4")

    def _read(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise BadRequest("the request has no Content-Length.", 411)
        if int(length) > MOST_BODY_BYTES:
            raise BadRequest(f"the body has {length} bytes, but may have {MOST_BODY_BYTES}.", 413)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise BadRequest("the body ends before its Content-Length.")
        return read_body(body)

    def _answer(self, *, is_chat: bool) -> None:
        asked = read_asked(self._read(), self.app.served, is_chat=is_chat)
        ends = frozenset[int]() if asked.ignores_end else self.app.ends
        jobs = [
            Job(
                prompt=prompt,
                max_tokens=asked.max_tokens,
                drawing=asked.drawing,
                ends=ends,
                tells_prompt=asked.echoes and asked.drawing.logprobs is not None,
            )
            for prompt in asked.prompts
        ]
        try:
            if not all(map(self.app.loop.submit, jobs)):
                raise BadRequest("too much is asked at once, or the server stops; try later.", 503)
            writer = Writer(asked=asked, served=self.app.served)
            if asked.is_streamed:
                self._stream(jobs[0], writer)
            else:
                self._send_whole(jobs, writer)
        finally:
            for job in jobs:
                job.is_cancelled = True

    def _send_whole(self, jobs: list[Job], writer: Writer) -> None:
        parts: list[Part] = []
        for index, job in enumerate(jobs):
            read: list[Drawn] = []
            drawn: list[Drawn] = []
            text, reason = self._echo(job, writer.asked), None
            for piece in self._follow(job, writer.asked):
                text += piece.text
                read += piece.read
                drawn += piece.drawn
                reason = piece.finish_reason
            parts.append(Part(index=index, text=text, read=read, drawn=drawn, finish_reason=reason))
        self._send(200, writer.write_whole(parts, sum(len(part.drawn) for part in parts)))

    def _echo(self, job: Job, asked: Asked) -> str:
        """Return the text of a prompt that is echoed, special tokens and all."""
        tokenizer = self.app.served.tokenizer
        if not asked.echoes or tokenizer is None:
            return ""
        return tokenizer.decode(job.prompt, skip_special=False)

    def _stream(self, job: Job, writer: Writer) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        num_tokens = 0
        try:
            for piece in self._follow(job, writer.asked):
                num_tokens += len(piece.drawn)
                self._send_event(writer.write_piece(piece))
            if writer.asked.with_usage:
                self._send_event(writer.write_usage(num_tokens))
            self.wfile.write(b"data: [DONE]\n\n")
        except BadRequest as error:
            self._send_event(write_error(error.status, str(error)))

    def _send_event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")

    def _follow(self, job: Job, asked: Asked) -> Iterator[Part]:
        """Yield the answer to a job as it comes; a last part says why it ended.

        Raises:
            BadRequest: the computation failed, or the server stops.
            ConnectionError: the reader is gone.
        """
        maker = TextMaker(
            self.app.served.tokenizer, job.prompt, asked.stop, skip_special=asked.skips_special
        )
        for event in job.read(SECONDS_BETWEEN_LOOKS):
            match event:
                case None:
                    if self._is_gone():
                        raise ConnectionAbortedError("the reader is gone")
                case Read():
                    yield Part(index=0, read=event.tokens)
                case Drawn():
                    text = "" if event.token in job.ends else maker.add(event.token)
                    if maker.is_stopped:
                        yield Part(index=0, text=text, drawn=[event], finish_reason="stop")
                        return
                    yield Part(index=0, text=text, drawn=[event])
                case Ended():
                    if event.reason not in ("stop", "length"):
                        raise BadRequest(event.message, 503 if event.reason == "cancelled" else 500)
                    text, reason = maker.finish(), event.reason
                    yield Part(index=0, text=text, finish_reason=reason)

    def _is_gone(self) -> bool:
        """Tell whether the other side has closed the connection."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True
