"""Text that lies in files or on the hub: which files these are, and how a change is seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hybridize.core.artifacts import hash_file, hash_json
from hybridize.core.errors import RunError
from hybridize.core.sources import Blend, Datasets, Stored, Tasks

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe

Kind = Literal["jsonl", "parquet", "datasets"]
PARTS = ("text", "prompt", "completion", "messages")


@dataclass(frozen=True, kw_only=True)
class StoredText:
    """One source of documents that are stored somewhere."""

    kind: Kind
    """What reads it."""
    name: str
    """Path, pattern of paths, or hub id."""
    config: str | None = None
    """datasets: configuration, where there are several."""
    split: str = "train"
    """datasets: which split."""
    revision: str | None = None
    """datasets: commit or tag of a hub id."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Part of a document (text, prompt, completion, messages) -> key in a record; may be empty."""

    @classmethod
    def of(cls, source: Stored) -> "StoredText":
        """Return what a section of a recipe names."""
        given = {part: getattr(source, part) for part in PARTS}
        keys = {part: key for part, key in given.items() if key is not None}
        if isinstance(source, Datasets):
            return cls(
                kind="datasets",
                name=source.dataset,
                config=source.config,
                split=source.split,
                revision=source.revision,
                keys=keys,
            )
        return cls(kind=source.kind, name=source.path, keys=keys)

    @classmethod
    def find(cls, name: str, keys: Mapping[str, str] | None = None) -> "StoredText":
        """Return what a bare name means: a file by its ending, a folder, or a hub id."""
        kind: Kind = "parquet" if name.endswith(".parquet") else "jsonl"
        is_id = name.count("/") == 1 and not Path(name).suffix and not has_magic(name)
        if Path(name).is_dir() or (is_id and not Path(name).exists()):
            kind = "datasets"
        return cls(kind=kind, name=name, keys=dict(keys or {}))

    @property
    def on_hub(self) -> bool:
        """Whether it is fetched, rather than read from a local folder or file."""
        return self.kind == "datasets" and not Path(self.name).exists()

    def files(self) -> list[Path]:
        """List its local files in the order they are read; none for a hub id.

        Raises:
            RunError: there is no such file.
        """
        if self.on_hub:
            return []
        path = Path(self.name)
        if self.kind == "datasets":
            return sorted(file for file in path.rglob("*") if file.is_file())
        if path.is_dir():
            raise RunError(f"data {self.name} is a folder. Write it as dataset: {self.name}.")
        found = [path] if path.exists() else sorted(map(Path, glob(self.name)))
        if not found:
            raise RunError(
                f"data {self.name} does not exist, seen from {Path.cwd()}. Check the path."
            )
        return found

    def checksum(self) -> str:
        """Hash its files; of a hub id, what is asked for.

        Raises:
            RunError: there is no such file.
        """
        if self.on_hub:
            return hash_json([self.name, self.config, self.split, self.revision])
        hashes = [(file.name, hash_file(file)) for file in self.files()]
        return hashes[0][1] if len(hashes) == 1 else hash_json(hashes)


def tell_missing(recipe: "Recipe") -> list[str]:
    """Say which files of a recipe's text are not here, a sentence each."""
    sources = [recipe.data.train, recipe.data.heldout, recipe.sft.data if recipe.sft else None]
    parts = [
        part
        for source in sources
        for part in (source.sources if isinstance(source, Blend) else (source,))
        if not isinstance(part, Tasks | None)
    ]
    told = []
    for part in parts:
        try:
            StoredText.of(part).files()
        except RunError as error:
            told.append(str(error))
    return list(dict.fromkeys(told))
