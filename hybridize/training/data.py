"""Rows of packed documents, each a pure function of its index, and batches of them.

Legend: B rows, T tokens.

Because row `i` is always the same row, the place in the data is one number: nothing about loading
has to be saved to continue a run, and any number of workers would see the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from hybridize import tasks
from hybridize.core.artifacts import hash_json
from hybridize.core.errors import RecipeError

MORE_DRAWS = 8
"""Documents drawn after the first that did not fit, to fill the rest of a row."""
DRAWS_FOR_ANY = 256
"""Documents drawn until one fits an empty row at all, before giving up."""
CACHED_ROWS = 2048


@dataclass(frozen=True)
class Row:
    """One row of packed documents; all three have the sequence length."""

    input_ids_T: Tensor
    segments_T: Tensor
    """Number of the document each token belongs to, from 1 on; 0 is padding."""
    loss_mask_T: Tensor
    """Whether a token counts, that is, whether its prediction from the token before is trained."""


@dataclass(frozen=True)
class Batch:
    """Rows side by side, with the fields of `Row`."""

    input_ids_BT: Tensor
    segments_BT: Tensor
    loss_mask_BT: Tensor
    first_row: int
    """Index in the source of the first row; the others follow it."""

    @property
    def num_counted(self) -> int:
        """Tokens the loss is summed over."""
        return int(self.loss_mask_BT[:, 1:].sum())

    @property
    def predicting_N(self) -> Tensor:
        """Places in the flattened batch whose next token counts."""
        counted_BT = torch.zeros_like(self.loss_mask_BT)
        counted_BT[:, :-1] = self.loss_mask_BT[:, 1:]
        return counted_BT.flatten().nonzero()[:, 0]

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(
            self.input_ids_BT.to(device),
            self.segments_BT.to(device),
            self.loss_mask_BT.to(device),
            self.first_row,
        )


class TokenSource(Protocol):
    """Where rows come from."""

    @property
    def sequence_length(self) -> int:
        """Tokens of a row."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values that change whenever a row would; for telling stale from done."""

    @property
    def rows_per_pass(self) -> int | None:
        """Rows until documents come again; None where they never do."""

    def row(self, index: int) -> Row:
        """Return row number `index`; the same row every time."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    eos_token_id: int | None

    def get_vocab(self) -> dict[str, int]:
        """Map each token to its id."""

    def __call__(self, text: Any, *, add_special_tokens: bool = True) -> Any:
        """Return a mapping whose `input_ids` are those of the text, or of each of the texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages as text."""


def batch(source: TokenSource, first_row: int, num_rows: int) -> Batch:
    """Stack rows `first_row` to `first_row + num_rows - 1` of a source."""
    rows = [source.row(index) for index in range(first_row, first_row + num_rows)]
    return Batch(
        torch.stack([row.input_ids_T for row in rows]),
        torch.stack([row.segments_T for row in rows]),
        torch.stack([row.loss_mask_T for row in rows]),
        first_row,
    )


def share_of_rank(first_row: int, num_rows: int, rank: int, num_ranks: int) -> range:
    """Return the rows of a global batch that are one rank's: its even share, in order.

    All ranks together have each row once, so a step sees the same rows whatever their number.
    """
    assert 0 <= rank < num_ranks, f"rank {rank} of {num_ranks}"
    start, stop = (num_rows * part // num_ranks for part in (rank, rank + 1))
    return range(first_row + start, first_row + stop)


Values = Sequence[int] | Sequence[bool] | np.ndarray[Any, Any]


def pack(documents: Sequence[tuple[Values, Values]], sequence_length: int) -> Row:
    """Lay (ids, counted) documents one after the other; the rest of the row is padding.

    The first token of a document never counts: nothing stands before it.
    """
    input_ids_T, segments_T = np.zeros((2, sequence_length), np.int64)
    loss_mask_T = np.zeros(sequence_length, bool)
    place = 0
    for number, (ids, counted) in enumerate(documents, start=1):
        part = slice(place, place + len(ids))
        input_ids_T[part], loss_mask_T[part], segments_T[part] = ids, counted, number
        loss_mask_T[place : place + 1] = False
        place += len(ids)
    return Row(*map(torch.from_numpy, (input_ids_T, segments_T, loss_mask_T)))


def read_documents(source: TokenSource) -> Iterator[tuple[list[int], int]]:
    """Yield the token ids of each document, and how many stand before the first that counts.

    A source that ends is gone through once; what was cut to fit a row comes in its pieces.
    """
    numbers = count() if source.rows_per_pass is None else range(source.rows_per_pass)
    for number in numbers:
        row = source.row(number)
        for segment in range(1, int(row.segments_T.max()) + 1):
            inside_T = row.segments_T == segment
            counted_T = row.loss_mask_T[inside_T]
            yield row.input_ids_T[inside_T].tolist(), int(counted_T.int().argmax())


class TaskRows:
    """Rows of the built-in reasoning problems, without end, or of plain text without traces."""

    rows_per_pass = None

    @property
    def has_thoughts(self) -> bool:
        """Whether the documents show their reasoning."""
        return self._style == "traces"

    @property
    def summary(self) -> str:
        """Say in one line what the rows hold."""
        what = "problems with traces" if self.has_thoughts else "plain text"
        return f"tasks: {what}, {self._split}, without end"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        sequence_length: int,
        seed: int,
        split: tasks.Split = "train",
        mix: Mapping[str, float] | None = None,
        style: Literal["traces", "text"] = "traces",
    ) -> None:
        """Choose what the rows hold.

        Args:
            split: held-out rows hold no problem that can occur in a training row of any seed.
            mix: share of each kind of problem; None takes all kinds alike.
            style: with `traces` only the tokens of the solutions count, with `text` all do.
        """
        self.sequence_length = sequence_length
        self.identity = {
            "kind": "tasks",
            "seed": seed,
            "split": split,
            "mix": dict(mix) if mix else None,
            "style": style,
            "sequence_length": sequence_length,
            "tokenizer": hash_tokenizer(tokenizer),
        }
        self._seed, self._split, self._mix, self._style = seed, split, mix, style
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        sample = tasks.make_text(seed=0, index=0)
        self._word_ids = vocabulary if _is_word_level(tokenizer, vocabulary, sample) else None
        self._rows: dict[int, Row] = {}

    def row(self, index: int) -> Row:
        """Return row number `index`: documents in the order drawn, skipping what no longer fits.

        Raises:
            RecipeError: none of many documents fits into a row.
        """
        if index not in self._rows:
            if len(self._rows) >= CACHED_ROWS:
                del self._rows[next(iter(self._rows))]
            self._rows[index] = self._build(index)
        return self._rows[index]

    def _build(self, index: int) -> Row:
        documents: list[tuple[list[int], list[bool]]] = []
        room, misses = self.sequence_length, 0
        # A document has a token at least, so that no row draws a document of the next.
        first = index * (self.sequence_length + DRAWS_FOR_ANY)
        for number in range(first, first + self.sequence_length + DRAWS_FOR_ANY):
            if misses > (MORE_DRAWS if documents else DRAWS_FOR_ANY - 1):
                break
            ids, counted = self._document(number)
            if len(ids) > room:
                misses += 1
                continue
            documents.append((ids, counted))
            room -= len(ids)
        if not documents:
            raise RecipeError(
                f"data: none of {DRAWS_FOR_ANY} documents fits into sequence_length "
                f"{self.sequence_length}. Raise it, or choose shorter problems in mix."
            )
        return pack(documents, self.sequence_length)

    def _document(self, number: int) -> tuple[list[int], list[bool]]:
        if self._style == "text":
            text = tasks.make_text(seed=self._seed, index=number, split=self._split)
            ids = self._encode(text)
            return ids, [True] * len(ids)
        problem = tasks.draw(seed=self._seed, index=number, split=self._split, mix=self._mix)
        prompt = self._encode(problem.prompt_text)
        completion = self._encode(" " + problem.completion_text)
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)

    def _encode(self, text: str) -> list[int]:
        if self._word_ids is None:
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return [self._word_ids[word] for word in text.split()]


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """Hash the vocabulary of a tokenizer and how it renders a chat."""
    template = getattr(tokenizer, "chat_template", None)
    return hash_json([sorted(tokenizer.get_vocab().items()), template])


def _is_word_level(tokenizer: Tokenizer, vocabulary: Mapping[str, int], sample: str) -> bool:
    """Tell whether looking words up gives the tokenizer's own ids, a hundred times faster."""
    if not all(word in vocabulary for word in tasks.words.VOCABULARY):
        return False
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    return list(ids) == [vocabulary[word] for word in sample.split()]
