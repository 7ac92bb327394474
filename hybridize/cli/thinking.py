"""Sorting the text of an answer into thinking and answer, as it comes."""

from collections.abc import Iterator

THINK, END_THINK = "<think>", "</think>"
HIDDEN = ("<answer>", "</answer>")
"""Marks of the shipped tasks around the answer; the answer is known without them."""
MARKS = (THINK, END_THINK, *HIDDEN)
LONGEST = max(map(len, MARKS))

Sorted = tuple[str, str]
"""`thinking` or `answer`, and a piece of it."""


class Sorter:
    """Takes text in pieces, gives it back as thinking or answer, without the marks.

    What may be the beginning of a mark is held back until it is not; spaces around marks are left
    out.

    Args:
        is_thinking: whether the answer begins with thinking, its mark being in the prompt.
    """

    def __init__(self, *, is_thinking: bool = False) -> None:
        self._kind = "thinking" if is_thinking else "answer"
        self._held = ""
        self._is_fresh = True

    def add(self, text: str) -> Iterator[Sorted]:
        """Yield what is certain by this piece."""
        self._held += text
        while (place := self._find_mark()) is not None:
            start, mark = place
            yield from self._give(self._held[:start].rstrip())
            self._held = self._held[start + len(mark) :]
            self._is_fresh = True
            self._kind = {THINK: "thinking", END_THINK: "answer"}.get(mark, self._kind)
        certain = len(self._held) - self._count_open()
        text, self._held = self._held[:certain], self._held[certain:]
        yield from self._give(text)

    def finish(self) -> Iterator[Sorted]:
        """Yield what was held back."""
        text, self._held = self._held.rstrip(), ""
        yield from self._give(text)

    def _give(self, text: str) -> Iterator[Sorted]:
        if self._is_fresh:
            text = text.lstrip()
        if text:
            self._is_fresh = False
            yield self._kind, text

    def _find_mark(self) -> tuple[int, str] | None:
        """Return the first mark in what is held, and where it begins."""
        found = [(self._held.find(mark), mark) for mark in MARKS]
        return min(((start, mark) for start, mark in found if start >= 0), default=None)

    def _count_open(self) -> int:
        """Return how many of the last characters may belong to a mark, with spaces before it."""
        for length in range(min(LONGEST - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(mark.startswith(end) for mark in MARKS):
                return len(self._held) - len(self._held[:-length].rstrip())
        return len(self._held) - len(self._held.rstrip())
