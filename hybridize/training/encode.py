"""From pieces of text to tokens, with the boundary between what counts and what does not exact.

A completion begins with a token of its own, as it does when it is generated. Tokens are those of
the whole text wherever its boundaries fall between two of them, and else those of its pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridize.training.data import Tokenizer
from hybridize.training.render import Document

Ids = list[int]


@dataclass(frozen=True)
class Encoded:
    """The tokens of one document."""

    ids: Ids
    counted: list[bool]
    """Whether each token counts."""
    exact: bool
    """Whether they are those of the whole text."""


class Encoder:
    """Turns documents into tokens, many at once where the tokenizer can."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        around = list(tokenizer("", add_special_tokens=True)["input_ids"])
        end = tokenizer.eos_token_id
        self._begin = around[:-1] if around and around[-1] == end else around
        self._end = [] if end is None else [end]
        self._takes_lists = bool(getattr(tokenizer, "is_fast", False))

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """Return the tokens of each document, with those that begin and end a text."""
        wholes = self._ids(["".join(text for text, _ in entry.pieces) for entry in documents])
        pieces = self._ids([text for entry in documents for text, _ in entry.pieces])
        found, place = [], 0
        for document, whole in zip(documents, wholes, strict=True):
            parts = pieces[place : place + len(document.pieces)]
            place += len(document.pieces)
            ends = self._find_ends(document, whole, parts)
            if ends is None:
                ids = [token for part in parts for token in part]
                lengths = [len(part) for part in parts]
            else:
                ids = whole
                lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            counts = [flag for _, flag in document.pieces]
            counted = [flag for flag, n in zip(counts, lengths, strict=True) for _ in range(n)]
            found.append(self._close(document, ids, counted, ends is not None))
        return found

    def _find_ends(self, document: Document, whole: Ids, parts: Sequence[Ids]) -> list[int] | None:
        """Find where each piece ends in the tokens of the whole; None where a token straddles."""
        if [token for part in parts for token in part] == whole:
            ends, done = [], 0
            for part in parts:
                done += len(part)
                ends.append(done)
            return ends
        text, ends = "", []
        for piece, _ in document.pieces[:-1]:
            text += piece
            head = self._ids([text])[0]
            if whole[: len(head)] != head:
                return None
            ends.append(len(head))
        return [*ends, len(whole)]

    def _close(self, document: Document, ids: Ids, counted: list[bool], exact: bool) -> Encoded:
        if document.is_chat:
            return Encoded(ids, counted, exact)
        if ids[: len(self._begin)] != self._begin:
            ids, counted = self._begin + ids, [False] * len(self._begin) + counted
        if self._end and ids[-1:] != self._end:
            ids, counted = ids + self._end, [*counted, True]
        return Encoded(ids, counted, exact)

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        if self._takes_lists and texts:
            return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])
        return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
