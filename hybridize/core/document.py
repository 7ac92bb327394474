"""A YAML document that remembers, for every value, the line or the option it came from."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import yaml

from hybridize.core.errors import RecipeError

KeyPath = tuple[str | int, ...]
_SCALARS = {"bool", "int", "float", "null"}


@dataclass
class Document:
    """Nested plain values, and where each of them was written."""

    name: str
    """Name of the file, for messages."""
    values: Any = None
    origins: dict[KeyPath, str] = field(default_factory=dict)
    """Where a value was written: `line 31` or `--set distill.lr=1e-4`."""
    words: dict[KeyPath, str] = field(default_factory=dict)
    """The text of a value that YAML did not read as text: `off`, `1:30`."""

    def copy(self) -> "Document":
        """Return a document that can be changed on its own."""
        return Document(self.name, deepcopy(self.values), dict(self.origins), dict(self.words))

    def place(self, path: KeyPath) -> str:
        """Name the place of `path`, or of the nearest value around it: `recipe f, line 3`."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return f"recipe {self.name}, {self.origins[path[:length]]}"
        return f"recipe {self.name}"

    def error(self, path: KeyPath, message: str) -> RecipeError:
        """Make the error of one value: its place, then the message."""
        return RecipeError(f"{self.place(path)}: {message}")

    def get(self, path: KeyPath) -> Any:
        """Return the value at `path`; None where there is none."""
        value = self.values
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def override(self, assignments: Iterable[str]) -> None:
        """Apply `a.b=value` assignments; list entries are named by index or by their `name`.

        Raises:
            RecipeError: no `=`, no such list entry, or a value in the way of the path.
        """
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals or not key.strip():
                raise RecipeError(f"--set {assignment}: write it as key=value, e.g. seed=3.")
            origin = f"--set {assignment}"
            given = parse(text, origin, at_line=False)
            self.assign(key.strip(), given.values, origin)

    def assign(self, dotted: str, value: Any, origin: str) -> None:
        """Put `value` at a dotted path, making the mappings on the way."""
        if not isinstance(self.values, dict):
            self.values = {}
        target: Any = self.values
        path: KeyPath = ()
        *parents, last = dotted.split(".")
        for part in parents:
            step = self._step(target, part, path, origin)
            if isinstance(target, dict) and target.get(step) is None:
                target[step] = {}
            target, path = target[step], (*path, step)
        path = (*path, self._step(target, last, path, origin))
        target[path[-1]] = value
        for known in [*self.origins]:
            if known[: len(path)] == path:
                del self.origins[known]
                self.words.pop(known, None)
        for inner in walk(value, path):
            self.origins[inner] = origin

    def _step(self, target: Any, part: str, path: KeyPath, origin: str) -> str | int:
        """Turn one part of a dotted path into a key or an index of `target`."""
        where = dotted(path) or "the recipe"
        if isinstance(target, dict):
            return part
        if not isinstance(target, list):
            raise RecipeError(f"{origin}: {where} is {target!r} and holds no {part!r}.")
        keys = [entry_name(entry) for entry in target]
        if part in keys:
            return keys.index(part)
        if part.isdecimal() and int(part) < len(target):
            return int(part)
        names = ", ".join(key for key in keys if key) or f"0 to {len(target) - 1}"
        raise RecipeError(f"{origin}: {where} has no entry {part!r}. Its entries: {names}.")


def entry_name(entry: Any) -> str | None:
    """Return what names a list entry in a dotted path: its `name`, else its `method`."""
    if not isinstance(entry, Mapping):
        return None
    name = entry.get("name", entry.get("method"))
    return name if isinstance(name, str) else None


def dotted(path: KeyPath) -> str:
    """Print a path as the user writes it: `stages.1.tokens`."""
    return ".".join(str(key) for key in path)


def walk(value: Any, path: KeyPath = ()) -> Iterable[KeyPath]:
    """List the paths of `value` and of everything inside it."""
    yield path
    entries: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, inner in entries:
        yield from walk(inner, (*path, key))


def parse(text: str, name: str, *, at_line: bool = True) -> Document:
    """Read YAML text and note the line of every value.

    Raises:
        RecipeError: not YAML, a duplicate key, a key that is not text, an anchor or a tag.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and at_line else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise RecipeError(
            f"{_prefix(name, at_line)}{line}: not YAML: {problem}. "
            "Check the indentation, and quote text that has a colon or a brace."
        ) from error
    document = Document(name=name)
    if node is not None:
        document.values = _Builder(document, at_line).build(node, ())
    return document


def _prefix(name: str, at_line: bool) -> str:
    return f"recipe {name}" if at_line else name


class _Builder:
    """Turns YAML nodes into plain values, strictly."""

    def __init__(self, document: Document, at_line: bool) -> None:
        self.document = document
        self.at_line = at_line
        self.seen: set[int] = set()

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        origin = self.document.origins.setdefault(path, _line(node))
        if id(node) in self.seen:
            raise self.error(
                origin, f"{dotted(path)} is an alias. Recipes have none: write it out."
            )
        self.seen.add(id(node))
        match node:
            case yaml.MappingNode():
                return self.mapping(node, path)
            case yaml.SequenceNode():
                return [self.build(entry, (*path, i)) for i, entry in enumerate(node.value)]
            case _:
                return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, entry in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(_line(key), "a key must be a word.")
            inner = (*path, key.value)
            if key.value in values:
                first = self.document.origins[inner]
                raise self.error(
                    _line(key),
                    f"{dotted(inner)} is given twice (first on {first}). Remove one of them.",
                )
            self.document.origins[inner] = _line(key)
            values[key.value] = self.build(entry, inner)
        return values

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if node.tag.startswith("!") or kind.startswith("python"):
            raise self.error(
                _line(node), f"{dotted(path)} has the tag {node.tag}. Recipes have none."
            )
        if kind not in _SCALARS or ":" in node.value:
            return node.value
        if kind != "null":
            self.document.words[path] = node.value
        return yaml.SafeLoader("").construct_object(node)

    def error(self, origin: str, message: str) -> RecipeError:
        line = f", {origin}" if self.at_line else ""
        return RecipeError(f"{_prefix(self.document.name, self.at_line)}{line}: {message}")


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
