"""Rows packed from stored text: JSONL, parquet or a dataset; texts, prompts or chats.

Legend: D documents, P pieces, a piece being a document or, of one longer than a row, a row's worth
of it; T tokens.

Each pass over the text packs the pieces in an order of its own, drawn from the seed and the number
of the pass.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from hybridize.core.artifacts import hash_json
from hybridize.core.errors import RecipeError, RunError
from hybridize.core.quantities import format_share, parse_share, short_count
from hybridize.core.sources import HELDOUT_SHARE
from hybridize.core.stored_text import StoredText
from hybridize.training.data import Row, Tokenizer, pack
from hybridize.training.store import TokenStore

OPEN_ROWS = 16
"""Rows that wait for a piece that fits while packing; more would fill rows hardly better."""

Indices = NDArray[np.int64]
Split = Literal["all", "train", "heldout"]
Long = Literal["split", "drop"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which documents become rows, and how."""

    split: Split = "all"
    """Which side of the division by `heldout_share` is taken."""
    heldout_share: float = HELDOUT_SHARE
    """Share of the prompts that is held out, 0..1. A prompt is never on both sides."""
    long_documents: Long = "split"
    """Whether a document longer than a row is cut into rows, or left out."""


class TextRows:
    """Rows of stored text, pass after pass over it without end."""

    def __init__(
        self,
        source: StoredText,
        tokenizer: Tokenizer,
        *,
        sequence_length: int,
        seed: int,
        settings: TextSettings | None = None,
        cache: Path | str | None = None,
    ) -> None:
        """Tokenise the text, or open what an earlier process kept of it.

        Args:
            cache: folder to keep the tokens in; None keeps them while this object lives.

        Raises:
            RunError: the text is missing or empty, a record cannot be rendered, or none is left.
            MachineError: a package that reads the text is missing, or the disk is full.
        """
        self.sequence_length = sequence_length
        self.source, self.settings = source, settings or TextSettings()
        self.store = TokenStore.open(source, tokenizer, cache)
        self.identity: dict[str, Any] = {
            "kind": "text",
            "seed": seed,
            "sequence_length": sequence_length,
            **asdict(self.settings),
            **{key: self.store.about[key] for key in ("checksum", "keys", "tokenizer", "format")},
        }
        documents_D = self._choose()
        self.prompts = self.store.groups_D[documents_D]
        """Hash of the prompt of each document."""
        self._starts_P, self._lengths_P, self.num_long = self._cut(documents_D)
        self.num_documents = len(documents_D)
        self._check()
        self._seed = seed
        self._first_rows = [0]
        self._pass = (0, self._pack(0))

    @property
    def rows_per_pass(self) -> int:
        """Rows of the first pass over the text; later passes differ by a few."""
        if len(self._first_rows) == 1:
            self.row(0)
        return self._first_rows[1]

    @property
    def has_thoughts(self) -> bool:
        """Whether any of the first documents shows visible reasoning."""
        return self.store.counts.thoughts > 0

    @property
    def largest_token(self) -> int:
        """Largest of all token ids."""
        return self.store.counts.largest_token

    @property
    def summary(self) -> str:
        """Say in one line what there is, what was left out, and what was cut."""
        counts = self.store.counts
        parts = [
            f"{self.num_documents:,} of {counts.documents:,} documents",
            f"{short_count(self._lengths_P.sum())} tokens in about {self.rows_per_pass:,} rows",
        ]
        if self.settings.split != "all":
            share = format_share(self.settings.heldout_share)
            parts[0] += f" ({self.settings.split}, {share} of the prompts held out)"
        done = "cut into rows" if self.settings.long_documents == "split" else "left out"
        notes = {
            f"longer than {self.sequence_length} tokens, {done}": self.num_long,
            "empty, left out": counts.empty,
            "the same as an earlier one": counts.duplicates,
            "tokenised piece by piece": counts.inexact,
        }
        parts += [f"{number:,} {note}" for note, number in notes.items() if number]
        return f"{self.source.name}: {'; '.join(parts)}"

    def row(self, index: int) -> Row:
        """Return row number `index`, counted on from pass to pass."""
        # A new list each time: threads that count passes at once must not add to each other's.
        first_rows = self._first_rows
        while index >= first_rows[-1]:
            first_rows = [*first_rows, first_rows[-1] + len(self._open(len(first_rows) - 1))]
            self._first_rows = first_rows
        number = bisect_right(first_rows, index) - 1
        documents = []
        for piece in self._open(number)[index - first_rows[number]]:
            start = int(self._starts_P[piece])
            part = slice(start, start + int(self._lengths_P[piece]))
            documents.append((self.store.tokens_T[part], self.store.counted_T[part]))
        return pack(documents, self.sequence_length)

    def _open(self, number: int) -> list[list[int]]:
        """Return the rows of a pass; the last one asked for is kept."""
        found, packed = self._pass
        if found != number:
            packed = self._pack(number)
            self._pass = (number, packed)
        return packed

    def _choose(self) -> Indices:
        """Choose the documents of this side, by the hash of their prompts."""
        if self.settings.split == "all":
            return np.arange(len(self.store.groups_D))
        limit = np.uint64(min(int(self.settings.heldout_share * 2**64), 2**64 - 1))
        heldout_D = self.store.groups_D < limit
        return np.flatnonzero(heldout_D if self.settings.split == "heldout" else ~heldout_D)

    def _cut(self, documents_D: Indices) -> tuple[Indices, Indices, int]:
        """Cut or drop what is longer than a row; leave out pieces in which nothing counts."""
        starts_D = np.asarray(self.store.starts_D)[documents_D]
        lengths_D = np.diff(self.store.starts_D)[documents_D]
        long_D = lengths_D > self.sequence_length
        if self.settings.long_documents == "drop":
            starts_D, lengths_D = starts_D[~long_D], lengths_D[~long_D]
        pieces_D = -(-lengths_D // self.sequence_length)
        first_D = np.cumsum(pieces_D) - pieces_D
        place_P = np.arange(pieces_D.sum()) - np.repeat(first_D, pieces_D)
        offset_P = place_P * self.sequence_length
        starts_P = np.repeat(starts_D, pieces_D) + offset_P
        lengths_P = np.minimum(np.repeat(lengths_D, pieces_D) - offset_P, self.sequence_length)
        learn_P = self._count(starts_P + 1, starts_P + lengths_P) > 0
        return starts_P[learn_P], lengths_P[learn_P], int(long_D.sum())

    def _count(self, from_P: Indices, until_P: Indices) -> Indices:
        """Count the tokens that count between pairs of places, which rise."""
        if not len(from_P):
            return from_P
        edges = np.stack([from_P, until_P], 1).ravel()
        mask_T = self.store.counted_T
        if edges[-1] == len(mask_T):
            edges = edges[:-1]
        sums = np.add.reduceat(mask_T, np.minimum(edges, len(mask_T) - 1), dtype=np.int64)
        # reduceat gives the value at a place for an empty stretch.
        return np.where(until_P > from_P, sums[::2], 0)

    def _check(self) -> None:
        """Refuse text of which nothing is left, with what to change."""
        if len(self._starts_P):
            return
        name, split = self.source.name, self.settings.split
        if self.num_documents and self.settings.long_documents == "drop":
            raise RunError(
                f"data {name}: all {self.num_documents} documents are longer than "
                f"sequence_length {self.sequence_length}. Raise it, or set long_documents: split."
            )
        if not self.num_documents and split != "all":
            raise RunError(
                f"data {name}: holding out {format_share(self.settings.heldout_share)} of the "
                f"prompts leaves no document to {'measure on' if split == 'heldout' else 'train'}"
                f" ({self.store.counts.documents} in all). Change data.heldout_share, or name "
                "another file in data.heldout."
            )
        raise RunError(f"data {name}: no document has a token to learn. Check its completions.")

    def _pack(self, number: int) -> list[list[int]]:
        """Put each piece into the fullest open row that takes it, in the order of this pass."""
        make = torch.Generator().manual_seed(int(hash_json([self._seed, number])[:15], 16))
        lengths = self._lengths_P.tolist()
        rows: list[list[int]] = []
        waiting: list[tuple[int, list[int]]] = []
        for piece in torch.randperm(len(lengths), generator=make).tolist():
            size = lengths[piece]
            fitting = [entry for entry in waiting if entry[0] >= size]
            room, row = min(fitting, key=lambda entry: entry[0], default=(0, None))
            if row is None:
                room, row = self.sequence_length, []
                rows.append(row)
            else:
                waiting.remove((room, row))
            row.append(piece)
            if room > size:
                waiting.append((room - size, row))
            if len(waiting) > OPEN_ROWS:
                waiting.remove(min(waiting, key=lambda entry: entry[0]))
        return rows


def read_settings(values: Mapping[str, Any]) -> TextSettings:
    """Make settings of plain values; a share may be written like "2%".

    Raises:
        RecipeError: an unknown setting or value.
    """
    known = {
        "split": get_args(Split),
        "long_documents": get_args(Long),
        "heldout_share": None,
    }
    for key, value in values.items():
        words = known.get(key, ())
        if words is not None and value not in words:
            hint = f"one of {', '.join(words)}" if words else f"no setting of {', '.join(known)}"
            raise RecipeError(f"text: {key} {value!r} is not known; it is {hint}.")
    share = parse_share(values.get("heldout_share", HELDOUT_SHARE))
    return TextSettings(**{**values, "heldout_share": share})
