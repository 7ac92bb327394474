"""A request as it came, read strictly: Asked, or BadRequest with one sentence."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridize.serving.sampling import Drawing
from hybridize.serving.text import SharedTokenizer

COMPLETION_TOKENS = 16
"""Longest answer of a completion that names none, as OpenAI has it."""
MOST_LIKELY = 20
"""Likely tokens that may be asked for at each place."""
MOST_STOPS = 16
UNSUPPORTED: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "suffix": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "functions": [],
    "response_format": {"type": "text"},
    "min_p": 0,
    "repetition_penalty": 1,
}
"""Field -> the value that asks for nothing."""


class BadRequest(Exception):
    """What was asked cannot be done; the message says why in one sentence."""

    def __init__(self, message: str, status: int = 400) -> None:
        """Keep the status of the answer."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids; chat has one."""
    max_tokens: int
    """0 only where the prompt is echoed."""
    drawing: Drawing
    stop: tuple[str, ...]
    is_chat: bool
    is_streamed: bool = False
    with_usage: bool = False
    """Whether a stream ends with the number of tokens."""
    ignores_end: bool = False
    skips_special: bool = True
    """Whether the text of special tokens is left out."""
    echoes: bool = False
    """Whether the answer begins with the prompt, and its logprobs with those of the prompt."""
    with_ids: bool = False
    """Whether token ids stand beside the text."""
    ids_as_text: bool = False
    """Whether logprobs name tokens as `token_id:17`."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is served, as far as requests are read by it."""

    name: str
    tokenizer: SharedTokenizer | None
    """None where the model has none; then prompts are token ids."""
    vocab_size: int
    context_tokens: int
    """Tokens that prompt and answer may have together."""


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a request carries; BadRequest where it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object.")
    return value


def read_asked(body: Mapping[str, Any], served: Served, *, is_chat: bool) -> Asked:
    """Read a request of completions or of chat.

    Raises:
        BadRequest: a field is missing, of a wrong type, out of range or not supported.
    """
    _check_supported(body)
    model = body.get("model")
    if model is not None and model != served.name:
        raise BadRequest(f"the model {model!r} is not served here; {served.name!r} is.", 404)
    prompts = (read_messages(body, served),) if is_chat else read_prompts(body, served)
    longest = max(map(len, prompts))
    if longest >= served.context_tokens:
        raise BadRequest(
            f"the prompt has {longest} tokens, but prompt and answer together may have "
            f"{served.context_tokens}."
        )
    rest = served.context_tokens - longest
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise BadRequest("stream_options is not an object.")
    is_streamed = _read_flag(body, "stream")
    if is_streamed and len(prompts) > 1:
        raise BadRequest("several prompts cannot be streamed; send them one by one.")
    echoes = _read_flag(body, "echo")
    if echoes and (is_chat or is_streamed):
        raise BadRequest("echo is for whole completions; leave it out of chat and of streams.")
    return Asked(
        prompts=prompts,
        max_tokens=_read_max_tokens(body, rest, least=0 if echoes else 1, is_chat=is_chat),
        drawing=_read_drawing(body, is_chat=is_chat),
        stop=_read_stop(body),
        is_chat=is_chat,
        is_streamed=is_streamed,
        with_usage=_read_flag(options, "include_usage"),
        ignores_end=_read_flag(body, "ignore_eos"),
        echoes=echoes,
        skips_special=_read_flag(body, "skip_special_tokens", default=True),
        with_ids=_read_flag(body, "return_token_ids"),
        ids_as_text=_read_flag(body, "return_tokens_as_token_ids"),
    )


def _check_supported(body: Mapping[str, Any]) -> None:
    for name, nothing in UNSUPPORTED.items():
        value = body.get(name)
        if value is not None and value != nothing:
            raise BadRequest(f"{name} is not supported here; leave it out.")


def read_prompts(body: Mapping[str, Any], served: Served) -> tuple[tuple[int, ...], ...]:
    """Read `prompt`: a text, token ids, or a list of either."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (_encode(prompt, served),)
    if not isinstance(prompt, list) or not prompt:
        raise BadRequest("prompt is missing; give a text, or a list of token ids.")
    if all(_is_whole(token) for token in prompt):
        return (_check_ids(prompt, served),)
    if all(isinstance(one, str) for one in prompt):
        return tuple(_encode(one, served) for one in prompt)
    if all(isinstance(one, list) and one and all(map(_is_whole, one)) for one in prompt):
        return tuple(_check_ids(one, served) for one in prompt)
    raise BadRequest("prompt is neither a text nor a list of token ids, nor a list of those.")


def read_messages(body: Mapping[str, Any], served: Served) -> tuple[int, ...]:
    """Read `messages`, written out by the model's chat template, up to where the answer begins."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages is missing; give a list of objects with role and content.")
    if served.tokenizer is None or not served.tokenizer.has_chat_template:
        raise BadRequest("this model has no chat template; ask /v1/completions.")
    plain = [_read_message(message) for message in messages]
    try:
        text = served.tokenizer.render(plain)
    except Exception as error:
        raise BadRequest(f"the chat template refuses the messages ({error}).") from error
    return _check_ids(served.tokenizer.encode(text, add_special=False), served)


def _read_message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRequest("a message is not an object with role and content.")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadRequest("a part of a message is not text, which is all this model reads.")
        content = "".join(map(str, parts))
    if not isinstance(content, str):
        raise BadRequest("the content of a message is not text.")
    return {"role": message["role"], "content": _check_text(content)}


def _check_text(text: str) -> str:
    """Refuse half of a character, which JSON can say and no tokenizer reads."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadRequest("the text has half of a character in it (a lone surrogate).")
    return text


def _encode(text: str, served: Served) -> tuple[int, ...]:
    if served.tokenizer is None:
        raise BadRequest("this model has no tokenizer; give the prompt as token ids.")
    return _check_ids(served.tokenizer.encode(_check_text(text)), served)


def _check_ids(ids: Sequence[int], served: Served) -> tuple[int, ...]:
    if not ids:
        raise BadRequest("the prompt has no tokens.")
    wrong = next((token for token in ids if not 0 <= token < served.vocab_size), None)
    if wrong is not None:
        raise BadRequest(f"{wrong} is not a token; they run from 0 to {served.vocab_size - 1}.")
    return tuple(ids)


def _read_max_tokens(body: Mapping[str, Any], rest: int, *, least: int, is_chat: bool) -> int:
    names = ("max_completion_tokens", "max_tokens")
    name = next((name for name in names if body.get(name) is not None), None)
    if name is None:
        return rest if is_chat else min(COMPLETION_TOKENS, rest)
    asked = _read_whole(body, name, least, None)
    assert asked is not None, "the field is there"
    if asked > rest:
        raise BadRequest(f"{name} is {asked}, but after this prompt there is room for {rest}.")
    return asked


def _read_drawing(body: Mapping[str, Any], *, is_chat: bool) -> Drawing:
    likely = _read_whole(body, "top_logprobs" if is_chat else "logprobs", 0, MOST_LIKELY)
    if is_chat:
        likely = (likely or 0) if _read_flag(body, "logprobs") else None
    top_k = _read_whole(body, "top_k", -1, None)
    return Drawing(
        temperature=_read_number(body, "temperature", 0.0, 2.0),
        top_p=_read_number(body, "top_p", 1e-6, 1.0),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        seed=_read_whole(body, "seed", -(2**63), 2**63 - 1),
        logprobs=likely,
    )


def _read_stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("stop is neither a text nor a list of texts.")
    if len(texts) > MOST_STOPS:
        raise BadRequest(f"stop has {len(texts)} texts, but may have {MOST_STOPS}.")
    return tuple(texts)


def _read_flag(body: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {value!r:.40}, not true or false.")
    return value


def _read_whole(body: Mapping[str, Any], name: str, least: int, most: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not _is_whole(value) or value < least or (most is not None and value > most):
        upto = "" if most is None else f" to {most}"
        raise BadRequest(f"{name} is {value!r:.40}, not a whole number from {least}{upto}.")
    return int(value)


def _read_number(body: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadRequest(f"{name} is {value!r:.40}, not a number from {least:g} to {most:g}.")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
