"""Visible reasoning: its marks, in tokenizers and in text, and the warning where text has none.

Distilled on text without reasoning, a teacher that reasons loses its reasoning first; its own
kind of traces brings it back (Apriel-H1, section 4).
"""

import logging
import re
from typing import Any, Protocol

LOG = logging.getLogger("hybridize.data")

MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",
}
"""What opens a model's thoughts -> what closes them, in the families that show them."""

_SHOWN = re.compile("|".join(map(re.escape, MARKS.values())))
_EMPTY = re.compile("|".join(rf"{re.escape(a)}\s*{re.escape(b)}" for a, b in MARKS.items()))


class ShowsThoughts(Protocol):
    """A source of rows that can say whether its text reasons."""

    @property
    def has_thoughts(self) -> bool:
        """Whether any of its first documents shows thoughts."""


def find_marks(tokenizer: Any) -> str | None:
    """Return the mark that opens thoughts in a tokenizer's vocabulary or chat template, if any."""
    vocabulary = tokenizer.get_vocab()
    template = str(getattr(tokenizer, "chat_template", None) or "")
    known = (mark for mark in MARKS if mark in vocabulary or mark in template)
    return next(known, None)


def shows_thoughts(text: str) -> bool:
    """Tell whether a text closes thoughts somewhere; empty ones do not count."""
    return _SHOWN.search(_EMPTY.sub("", text)) is not None


def split_thoughts(text: str) -> tuple[str, str]:
    """Divide an answer into its thoughts, without their marks, and the rest."""
    for opening, closing in MARKS.items():
        before, found, after = text.partition(closing)
        if found:
            return before.replace(opening, "", 1).strip(), after.strip()
    return "", text.strip()


def warn_without_thoughts(tokenizer: Any, source: ShowsThoughts, name: str) -> None:
    """Log a warning where a teacher that reasons is about to be trained on text that does not."""
    mark = find_marks(tokenizer)
    if mark is not None and not source.has_thoughts:
        LOG.warning(
            "%s: the teacher reasons (its tokenizer knows %s), but this text shows no reasoning. "
            "Distilled on plain text a model forgets how to reason first: use traces, the "
            "teacher's own if you can, or blend some in.",
            name,
            mark,
        )
