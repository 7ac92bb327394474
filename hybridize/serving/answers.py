"""Answers as OpenAI's API has them: whole, in pieces of a stream, and errors."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridize.serving.asked import Asked, Served
from hybridize.serving.sampling import Drawn
from hybridize.serving.text import ID_MARK

KINDS = {400: "invalid_request_error", 404: "not_found_error", 401: "authentication_error"}


@dataclass(kw_only=True)
class Part:
    """What one prompt got, or a piece of it."""

    index: int
    text: str = ""
    read: Sequence[Drawn] = ()
    """The prompt with its logprobs, where it is echoed with them."""
    drawn: Sequence[Drawn] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes the answers to one request."""

    asked: Asked
    served: Served
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def write_whole(self, parts: Sequence[Part], num_tokens: int) -> dict[str, Any]:
        """Return an answer to all prompts."""
        kind = "chat.completion" if self.asked.is_chat else "text_completion"
        choices = [self._choice(part, "message") for part in parts]
        return {**self._head(kind), "choices": choices, "usage": self._usage(num_tokens)}

    def write_piece(self, part: Part) -> dict[str, Any]:
        """Return an event of a stream."""
        kind = "chat.completion.chunk" if self.asked.is_chat else "text_completion"
        return {**self._head(kind), "choices": [self._choice(part, "delta")]}

    def write_usage(self, num_tokens: int) -> dict[str, Any]:
        """Return the last event of a stream that was asked to count."""
        kind = "chat.completion.chunk" if self.asked.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self._usage(num_tokens)}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.asked.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.served.name,
        }

    def _usage(self, num_tokens: int) -> dict[str, int]:
        prompt = sum(map(len, self.asked.prompts))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": num_tokens,
            "total_tokens": prompt + num_tokens,
        }

    def _choice(self, part: Part, place: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": part.index, "finish_reason": part.finish_reason}
        if self.asked.is_chat:
            choice[place] = {"role": "assistant", "content": part.text}
        else:
            choice["text"] = part.text
        choice["logprobs"] = self._logprobs([*part.read, *part.drawn])
        if self.asked.with_ids:
            choice["token_ids"] = [drawn.token for drawn in part.drawn]
        return choice

    def _logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        if self.asked.drawing.logprobs is None:
            return None
        if self.asked.is_chat:
            return {"content": [self._entry(one) for one in drawn]}
        return {
            "tokens": [self._name(one.token) for one in drawn],
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [self._likely(one) for one in drawn],
        }

    def _likely(self, drawn: Drawn) -> dict[str, float] | None:
        if drawn.logprob is None:
            return None
        return {self._name(token): logprob for token, logprob in drawn.likely}

    def _entry(self, drawn: Drawn) -> dict[str, Any]:
        likely = [
            {"token": self._name(token), "logprob": logprob} for token, logprob in drawn.likely
        ]
        return {
            "token": self._name(drawn.token),
            "logprob": drawn.logprob,
            "top_logprobs": likely,
        }

    def _name(self, token: int) -> str:
        if self.asked.ids_as_text or self.served.tokenizer is None:
            return f"{ID_MARK}{token}"
        return self.served.tokenizer.name(token)


def write_error(status: int, message: str) -> dict[str, Any]:
    """Return the body of an answer that is an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
