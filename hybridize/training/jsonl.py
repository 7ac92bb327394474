"""Rows packed from a JSONL file of texts, of prompts with completions, or of chats.

Legend: P pieces, a piece being a document or, of one longer than a row, a row's worth of it.

The file is tokenised once. Each pass over it packs the pieces in an order of its own, drawn from
the seed and the number of the pass.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridize.core.artifacts import hash_file, hash_json, read_jsonl
from hybridize.core.errors import RunError
from hybridize.training.data import Row, Tokenizer, hash_tokenizer, pack

OPEN_ROWS = 16
"""Rows that wait for a piece that fits while packing; more would fill rows hardly better."""
FORMAT = 1
"""Raised when the same file would be tokenised otherwise, so that no cache is read wrongly."""


class JsonlRows:
    """Rows of a JSONL file, pass after pass over it without end."""

    def __init__(
        self,
        path: Path | str,
        tokenizer: Tokenizer,
        *,
        sequence_length: int,
        seed: int,
        keys: Mapping[str, str] | None = None,
        cache: Path | str | None = None,
    ) -> None:
        """Tokenise the file, or read what an earlier process kept of it.

        Args:
            keys: where in a line the parts are, `{"text": ...}`, `{"prompt": ..., "completion":
                ...}` or `{"messages": ...}`; None looks for these very names in the first line.
            cache: folder to keep the tokens in; None tokenises the file in each process.

        Raises:
            RunError: the file is missing or empty, or a line lacks a key or cannot be rendered.
        """
        self.sequence_length = sequence_length
        keys = dict(keys) if keys else _find_keys(Path(path))
        tokens = {
            "format": FORMAT,
            "file": hash_file(path),
            "keys": keys,
            "tokenizer": hash_tokenizer(tokenizer),
        }
        self.identity = {
            "kind": "jsonl",
            "seed": seed,
            "sequence_length": sequence_length,
            **tokens,
        }
        kept = Path(cache) / f"tokens-{hash_json(tokens)[:16]}.safetensors" if cache else None
        if kept is not None and kept.exists():
            tensors = load_file(kept)
        else:
            tensors = _tokenize(Path(path), tokenizer, keys)
            if kept is not None:
                _keep(kept, tensors)
        self._ids, self._counted = tensors["ids"], tensors["counted"]
        self._starts_P, self._lengths_P = self._cut(tensors["lengths"])
        if not len(self._starts_P):
            raise RunError(f"data {path}: no line has a token to learn. Check its completions.")
        self._seed = seed
        self._first_rows = [0]
        self._pass: tuple[int, list[list[int]]] = (0, self._pack(0))

    @property
    def rows_per_pass(self) -> int:
        """Rows of the first pass over the file; later passes differ by a few."""
        if len(self._first_rows) == 1:
            self.row(0)
        return self._first_rows[1]

    def row(self, index: int) -> Row:
        """Return row number `index`, counted on from pass to pass."""
        while index >= self._first_rows[-1]:
            self._open(len(self._first_rows) - 1)
            self._first_rows.append(self._first_rows[-1] + len(self._pass[1]))
        number = bisect_right(self._first_rows, index) - 1
        self._open(number)
        documents = []
        for piece in self._pass[1][index - self._first_rows[number]]:
            start = int(self._starts_P[piece])
            part = slice(start, start + int(self._lengths_P[piece]))
            documents.append((self._ids[part].tolist(), self._counted[part].tolist()))
        return pack(documents, self.sequence_length)

    def _open(self, number: int) -> None:
        if self._pass[0] != number:
            self._pass = (number, self._pack(number))

    def _cut(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Cut documents at the sequence length; drop pieces in which nothing counts."""
        starts, sizes, place = [], [], 0
        for length in lengths.tolist():
            for start in range(place, place + length, self.sequence_length):
                size = min(self.sequence_length, place + length - start)
                if self._counted[start + 1 : start + size].any():
                    starts.append(start)
                    sizes.append(size)
            place += length
        return torch.tensor(starts), torch.tensor(sizes)

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


def _find_keys(path: Path) -> dict[str, str]:
    first = next(read_jsonl(path), None)
    if first is None:
        raise RunError(f"data {path} does not exist or has no whole line. Check the path.")
    for names in (("messages",), ("prompt", "completion"), ("text",)):
        if all(name in first for name in names):
            return {name: name for name in names}
    raise RunError(
        f"data {path}, line 1 has the keys {', '.join(first)}, and none of text, messages, or "
        "prompt with completion. Name the keys in the recipe."
    )


def _tokenize(path: Path, tokenizer: Tokenizer, keys: Mapping[str, str]) -> dict[str, Tensor]:
    ids, counted = array("i"), bytearray()
    lengths = []
    for number, line in enumerate(read_jsonl(path), start=1):
        before = len(ids)
        try:
            for part, learn, special in _parts(line, tokenizer, keys):
                part_ids = tokenizer(part, add_special_tokens=special)["input_ids"]
                ids.extend(part_ids)
                counted += bytes([learn]) * len(part_ids)
        except KeyError as error:
            raise RunError(
                f"data {path}, line {number} has no {error}. Correct the line, or name the keys "
                "in the recipe."
            ) from error
        end = tokenizer.eos_token_id
        if "messages" not in keys and end is not None and (len(ids) == before or ids[-1] != end):
            ids.append(end)
            counted.append(1)
        if not any(counted[before:]):
            raise RunError(
                f"data {path}, line {number} has no token to learn. Give it a completion or an "
                "assistant's turn that the chat template renders where it asks for one."
            )
        lengths.append(len(ids) - before)
    return {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "counted": torch.tensor(counted, dtype=torch.uint8).bool(),
        "lengths": torch.tensor(lengths, dtype=torch.int64),
    }


def _parts(
    line: Mapping[str, Any], tokenizer: Tokenizer, keys: Mapping[str, str]
) -> Iterator[tuple[str, bool, bool]]:
    """Yield (text, whether it counts, whether the tokenizer adds its special tokens)."""
    if "text" in keys:
        yield line[keys["text"]], True, True
    elif "prompt" in keys:
        yield line[keys["prompt"]], False, True
        yield line[keys["completion"]], True, False
    else:
        yield from (
            (text, learn, False) for text, learn in _turns(line[keys["messages"]], tokenizer)
        )


def _turns(messages: list[dict[str, str]], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Render a chat piece by piece: each assistant turn counts, from its generation prompt on.

    A template that renders earlier turns otherwise once more follow leaves only the last to count.
    """

    def render(until: int, ask: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages[:until], tokenize=False, add_generation_prompt=ask
            )
        )

    whole = render(len(messages))
    answers = [n for n, entry in enumerate(messages) if n and entry["role"] == "assistant"]
    turns = [(render(n, ask=True), render(n + 1)) for n in answers]
    if not all(whole.startswith(asked) and whole.startswith(said) for asked, said in turns):
        turns = [turn for turn in turns[-1:] if whole.startswith(turn[0])]
    done = 0
    for asked, said in turns:
        yield whole[done : len(asked)], False
        yield whole[len(asked) : len(said)], True
        done = len(said)
    yield whole[done:], False


def _keep(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary)
    temporary.replace(path)
