"""Text from tokens as they come: no half characters, and nothing behind a stop text."""

import threading
from collections.abc import Sequence
from typing import Any

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of bytes that are no whole character yet."""

CONTEXT = 8
"""Tokens of the prompt that decide how the answer begins, such as with a space."""
THINK = "<think>"
ID_MARK = "token_id:"
"""Before the number of a token that is not named by its text."""


class SharedTokenizer:
    """A tokenizer that several threads use, one at a time: those of Hugging Face cannot."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self.has_chat_template = bool(tokenizer.chat_template)

    @property
    def opens_thinking(self) -> bool:
        """Tell whether the chat template ends with the mark that opens thinking."""
        from jinja2 import TemplateError

        if not self.has_chat_template:
            return False
        try:
            return self.render([{"role": "user", "content": "a"}]).rstrip().endswith(THINK)
        except TemplateError:  # it wants a conversation of another form
            return False

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Return the token ids of a text; with those that the tokenizer puts around it."""
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens."""
        with self._lock:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def render(self, messages: list[dict[str, str]]) -> str:
        """Write a conversation out, up to where the answer begins."""
        with self._lock:
            text: str = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        return text

    def name(self, token: int) -> str:
        """Return the text of one token, or its number where it has none of its own."""
        text = self.decode([token], skip_special=False)
        return f"{ID_MARK}{token}" if HALF in text else text


class TextMaker:
    """Turns the tokens of one answer into pieces of text.

    What is written is the text of prompt and answer together, less that of the prompt, so that a
    space between two words is not lost. A piece that may be the beginning of a stop text is held
    back until it is not.

    Args:
        tokenizer: None makes no text.
        prompt: last tokens before the answer.
        stop: texts before which the answer ends.
        skip_special: leave out the text of special tokens.
    """

    def __init__(
        self,
        tokenizer: SharedTokenizer | None,
        prompt: Sequence[int],
        stop: Sequence[str],
        *,
        skip_special: bool,
    ) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids = list(prompt[-CONTEXT:])
        self._read = len(self._ids)
        self._start = 0
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Take in a token; return the text that is certain by it."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if after.endswith(HALF) or len(after) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        self._held += after[len(before) :]
        return self._release()

    def finish(self) -> str:
        """Return what was held back; nothing comes after it."""
        if self.is_stopped:
            return ""
        before = self._decode(self._ids[self._start : self._read])
        text = self._held + self._decode(self._ids[self._start :])[len(before) :]
        self._held = ""
        places = [place for place in map(text.find, self._stop) if place >= 0]
        return text[: min(places)] if places else text

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(ids, skip_special=self._skip_special)

    def _release(self) -> str:
        """Return what is held, up to a stop text or to what may become one."""
        places = [place for place in map(self._held.find, self._stop) if place >= 0]
        if places:
            self.is_stopped = True
            return self._held[: min(places)]
        kept = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = (
            self._held[: len(self._held) - kept],
            self._held[len(self._held) - kept :],
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of a text are the first of a stop text."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
