"""What servers answer: Piece (an event of a stream) and Completion (the whole), in any dialect.

Servers agree on the text and differ in how they give token ids: vLLM as `token_ids` beside the
text, llama.cpp as `tokens` or as the `id` of each entry of the logprobs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TokenKey = int | str
ID_MARK = "token_id:"
"""Before a token's number, where vLLM is asked to give tokens so."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came at one moment."""

    seconds: float
    """Since the request was sent."""
    text: str = ""
    thinking: str = ""
    """Text that the server sorted out as thinking; most leave it in `text`, with its marks."""
    token_ids: tuple[int, ...] = ()
    """Empty where the server does not tell."""
    logprobs: tuple[float, ...] = ()
    """Of the tokens taken, in nats; empty where not asked for."""
    top_logprobs: tuple[Mapping[TokenKey, float], ...] = ()
    """Likely tokens at each place, by id where the server tells it, else by text."""
    finish_reason: str | None = None
    """`stop` or `length` at the end."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer."""

    text: str
    thinking: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[Mapping[TokenKey, float], ...]
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: tuple[float, ...]
    """When each piece with text or tokens came, since the request was sent."""


def collect(pieces: Iterable[Piece]) -> Completion:
    """Put the pieces of an answer together."""
    kept = list(pieces)

    def last(name: str) -> Any:
        values = [getattr(piece, name) for piece in kept]
        return next((value for value in reversed(values) if value is not None), None)

    return Completion(
        text="".join(piece.text for piece in kept),
        thinking="".join(piece.thinking for piece in kept),
        token_ids=tuple(token for piece in kept for token in piece.token_ids),
        logprobs=tuple(value for piece in kept for value in piece.logprobs),
        top_logprobs=tuple(value for piece in kept for value in piece.top_logprobs),
        finish_reason=last("finish_reason"),
        prompt_tokens=last("prompt_tokens"),
        completion_tokens=last("completion_tokens"),
        seconds=tuple(
            piece.seconds for piece in kept if piece.text or piece.thinking or piece.token_ids
        ),
    )


def read_piece(value: Mapping[str, Any], seconds: float) -> Piece:
    """Read one JSON value of an answer, whole or of a stream, of completions or of chat."""
    usage = value.get("usage") or {}
    choices = value.get("choices") or [{}]
    choice = choices[0]
    said = choice.get("message") or choice.get("delta") or {}
    ids, logprobs, tops = _read_logprobs(choice.get("logprobs") or {})
    return Piece(
        seconds=seconds,
        text=choice.get("text") or said.get("content") or "",
        thinking=said.get("reasoning_content") or said.get("reasoning") or "",
        token_ids=tuple(choice.get("token_ids") or choice.get("tokens") or ids),
        logprobs=logprobs,
        top_logprobs=tops,
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _read_logprobs(
    given: Mapping[str, Any],
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[Mapping[TokenKey, float], ...]]:
    """Return the token ids, where they are told, their logprobs, and the likely tokens."""
    if given.get("content"):
        entries = given["content"]
        keys = [_read_key(entry) for entry in entries]
        values = [float(entry["logprob"]) for entry in entries]
        tops = [
            {_read_key(one): float(one["logprob"]) for one in entry.get("top_logprobs") or ()}
            for entry in entries
        ]
    else:
        keys = [_read_key({"token": token}) for token in given.get("tokens") or ()]
        values = [float(value or 0.0) for value in given.get("token_logprobs") or ()]
        tops = [
            {_read_key({"token": token}): float(value) for token, value in (top or {}).items()}
            for top in given.get("top_logprobs") or ()
        ]
    ids = tuple(key for key in keys if isinstance(key, int))
    return (ids if len(ids) == len(keys) else ()), tuple(values), tuple(tops)


def _read_key(entry: Mapping[str, Any]) -> TokenKey:
    """Return the id of a token where it is told, else its text."""
    if entry.get("id") is not None:
        return int(entry["id"])
    token = str(entry["token"])
    number = token.removeprefix(ID_MARK)
    return int(number) if number != token and number.isdecimal() else token
