"""Tokens of stored text, tokenised once into memory-mapped files with a checksum.

A store is a folder: `tokens.bin`, `counted.bin` (a byte a token), `starts.bin`, `groups.bin` (one
number a document), and `store.json`, which says what they were made from. It is written under
another name and renamed, so whoever finds it finds it whole.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridize.core.artifacts import hash_json, write_json
from hybridize.core.errors import MachineError, RunError
from hybridize.core.stored_text import StoredText
from hybridize.training.data import Tokenizer, hash_tokenizer
from hybridize.training.encode import Encoder
from hybridize.training.records import read_records
from hybridize.training.render import Document, find_keys, render
from hybridize.training.thoughts import shows_thoughts

LOG = logging.getLogger("hybridize.data")
FORMAT = 2
"""Raised when the same text would be tokenised otherwise, so that no store is read wrongly."""
DOCUMENTS_AT_ONCE = 256
ABANDONED_SECONDS = 7 * 86_400
"""Age at which a store that was never finished is taken for that of a killed process."""
DOCUMENTS_LOOKED_AT = 1000
"""Documents at the beginning in which visible reasoning is looked for."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a store holds, in numbers."""

    records: int
    documents: int
    """More than the records where a chat became a document for each answer."""
    tokens: int
    counted: int
    """Tokens that count in the loss."""
    empty: int
    """Records of empty text, left out."""
    duplicates: int
    """Documents whose tokens are those of an earlier one; they are kept."""
    inexact: int
    """Documents whose tokens are those of their pieces, since a token would straddle two."""
    largest_token: int
    """Largest of all token ids."""
    thoughts: int
    """Of the first documents looked at, those that show thoughts."""


class TokenStore:
    """The tokens of all documents of one source, on disk."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Map the files of a folder; `about` is what its store.json says."""
        self.folder, self.about = folder, about
        self.counts = Counts(**about["counts"])
        self.tokens_T = self._map("tokens", np.dtype(about["dtype"]), self.counts.tokens)
        self.counted_T = self._map("counted", np.dtype(bool), self.counts.tokens)
        self.starts_D = self._map("starts", np.dtype(np.int64), self.counts.documents + 1)
        self.groups_D = self._map("groups", np.dtype(np.uint64), self.counts.documents)
        self._temporary: TemporaryDirectory[str] | None = None

    @classmethod
    def open(
        cls, source: StoredText, tokenizer: Tokenizer, cache: Path | str | None = None
    ) -> "TokenStore":
        """Return the tokens of a source: those kept in `cache` if they still hold, else new ones.

        Args:
            cache: folder of stores; None keeps the tokens in a folder that goes with the object.

        Raises:
            RunError: the text is missing or empty, or a record lacks a key or cannot be rendered.
            MachineError: a package that reads the text is missing, or the disk is full.
        """
        wanted = {
            "format": FORMAT,
            "source": {key: value for key, value in asdict(source).items() if key != "keys"},
            "keys": dict(source.keys),
            "tokenizer": _hash_whole(tokenizer),
            "checksum": source.checksum(),
        }
        if cache is None:
            temporary = TemporaryDirectory(prefix="hybridize-tokens-")
            folder = Path(temporary.name) / "store"
        else:
            lasting = {key: value for key, value in wanted.items() if key != "checksum"}
            folder = Path(cache) / f"{Path(source.name).stem}-{hash_json(lasting)[:12]}"
            about = _read_about(folder)
            if about is not None and about["checksum"] == wanted["checksum"]:
                return cls(folder, about)
            if about is not None:
                LOG.warning("data %s changed since it was tokenised; doing it again", source.name)
        _write(folder, source, tokenizer, wanted)
        store = cls(folder, json.loads((folder / "store.json").read_text(encoding="utf-8")))
        if cache is None:
            store._temporary = temporary
        return store

    def __reduce__(self) -> Any:
        """Let another process open the same folder rather than receive its contents."""
        return TokenStore, (self.folder, self.about)

    def _map(self, name: str, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
        if not size:
            return np.zeros(0, dtype)
        return np.memmap(self.folder / f"{name}.bin", dtype=dtype, mode="r", shape=(size,))


def _read_about(folder: Path) -> dict[str, Any] | None:
    """Read what a store says of itself; None where there is none, or none that is whole."""
    try:
        about: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in about["bytes"]}
    except (OSError, ValueError, KeyError):
        return None
    if sizes != about["bytes"]:
        LOG.warning("the tokens in %s are damaged; tokenising again", folder)
        return None
    return about


def _write(folder: Path, source: StoredText, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Tokenise a source into a folder that takes its name when it is whole."""
    fresh = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in folder.parent.glob(f".{folder.name}.*"):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        fresh = Path(mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        counts = _fill(fresh, source, tokenizer)
        for path in fresh.glob("*.bin"):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sizes = {path.name: path.stat().st_size for path in sorted(fresh.glob("*.bin"))}
        dtype = _dtype(tokenizer).name
        write_json(
            fresh / "store.json", {**about, "dtype": dtype, "counts": counts, "bytes": sizes}
        )
        _put(fresh, folder, about["checksum"])
    except OSError as error:
        raise MachineError(
            f"the tokens of {source.name} could not be written to {folder} ({error.strerror}). "
            "Make room, or set data.cache to another folder."
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _put(fresh: Path, folder: Path, checksum: str) -> None:
    """Give a whole store its name; one that another process just put there stays."""
    about = _read_about(folder)
    if about is not None and about["checksum"] == checksum:
        return
    if folder.exists():
        stale = Path(mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        folder.rename(stale / "stale")
        shutil.rmtree(stale, ignore_errors=True)
    try:
        fresh.rename(folder)
    except OSError:
        if _read_about(folder) is None:
            raise


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    largest = max(tokenizer.get_vocab().values())
    return np.dtype(np.uint16 if largest < 2**16 else np.uint32)


def _fill(folder: Path, source: StoredText, tokenizer: Tokenizer) -> Counts:
    dtype, encoder = _dtype(tokenizer), Encoder(tokenizer)
    largest = max(tokenizer.get_vocab().values())
    starts, groups, seen = [0], list[int](), set[bytes]()
    counted = duplicates = inexact = thoughts = most = 0
    tally = {"records": 0, "empty": 0}
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "counted.bin").open("wb") as mask:
        documents = _documents(source, tokenizer, tally)
        while some := list(islice(documents, DOCUMENTS_AT_ONCE)):
            for document, encoded in zip(some, encoder.encode(some), strict=True):
                if len(groups) < DOCUMENTS_LOOKED_AT:
                    thoughts += shows_thoughts("".join(text for text, _ in document.pieces))
                if not encoded.ids:
                    tally["empty"] += 1
                    continue
                most = max(most, max(encoded.ids))
                if most > largest:
                    raise RunError(
                        f"data {source.name} has the token {most}, but the vocabulary "
                        f"of the tokenizer ends at {largest}. Use the teacher's own tokenizer."
                    )
                ids = np.array(encoded.ids, dtype).tobytes()
                tokens.write(ids)
                mask.write(np.array(encoded.counted, bool).tobytes())
                digest = hashlib.blake2b(ids, digest_size=16).digest()
                duplicates += digest in seen
                seen.add(digest)
                starts.append(starts[-1] + len(encoded.ids))
                groups.append(_hash_group(document.group))
                counted += sum(encoded.counted)
                inexact += not encoded.exact
    np.array(starts, np.int64).tofile(folder / "starts.bin")
    np.array(groups, np.uint64).tofile(folder / "groups.bin")
    return Counts(
        **tally,
        documents=len(groups),
        tokens=starts[-1],
        counted=counted,
        duplicates=duplicates,
        inexact=inexact,
        largest_token=most,
        thoughts=thoughts,
    )


def _documents(
    source: StoredText, tokenizer: Tokenizer, tally: dict[str, int]
) -> Iterator[Document]:
    """Render record after record; count them in `tally` on the way."""
    records = read_records(source)
    first = next(records, None)
    if first is None:
        raise RunError(f"data {source.name} has no record. Check the path.")
    keys = dict(source.keys) or find_keys(*first)
    for place, record in chain((first,), records):
        documents: Iterable[Document] = render(place, record, keys, tokenizer)
        tally["records"] += 1
        tally["empty"] += not documents
        yield from documents


def _hash_whole(tokenizer: Tokenizer) -> str:
    """Hash a tokenizer with its merges and rules; how it pads and cuts batches does not matter."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return hash_tokenizer(tokenizer)
    rules = {**json.loads(core.to_str()), "truncation": None, "padding": None}
    return hash_json([hash_tokenizer(tokenizer), rules])


def _hash_group(group: str) -> int:
    return int.from_bytes(hashlib.blake2b(group.encode(errors="replace"), digest_size=8).digest())
