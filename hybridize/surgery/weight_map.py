"""WeightMap: where each tensor of a student comes from, printed, checked and saved."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hybridize.core.errors import ModelError
from hybridize.surgery.nodes import (
    Concat,
    Copy,
    Init,
    Node,
    Repeat,
    RowSum,
    Scale,
    Shape,
    Shapes,
    Slice,
    Times,
)

_NODES: dict[str, type[Node]] = {
    kind.__name__.lower(): kind
    for kind in (Copy, Slice, Concat, Repeat, Scale, Times, RowSum, Init)
}


@dataclass(frozen=True)
class WeightMap:
    """An expression for each tensor of the student, and a reason for each tensor left behind."""

    entries: tuple[tuple[str, Node], ...]
    """(student tensor, expression), in the order of the student's tensors."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """"origin:name" of a tensor that is not used -> why."""

    def check(self, wanted: Mapping[str, Shape], shapes: Shapes) -> None:
        """Check that the map fits before anything is copied.

        Args:
            wanted: shape of each tensor of the student to be made.
            shapes: shapes of the tensors of each origin that must be used or dropped.

        Raises:
            ModelError: a student tensor that is named not once, an expression with the wrong
                shape, or a tensor of an origin that is neither used nor dropped.
        """
        counts = Counter(name for name, _ in self.entries)
        for name in [*wanted, *counts]:
            if counts[name] != 1 or name not in wanted:
                told = "is no tensor of the student" if name not in wanted else "must be named once"
                raise ModelError(f"weight map: {name} {told}; it is named {counts[name]} times.")
        for name, node in self.entries:
            found = node.shape(shapes)
            if found != tuple(wanted[name]):
                raise ModelError(
                    f"weight map: {name} needs shape {tuple(wanted[name])}, but {node} has {found}."
                    " Check the mixer's options against the teacher's heads."
                )
        used = self.used
        for origin in ("student", "teacher"):
            for name in shapes[origin]:
                if f"{origin}:{name}" not in used and f"{origin}:{name}" not in self.dropped:
                    raise ModelError(
                        f"weight map: tensor {name} of the {origin} is neither used nor listed as "
                        "dropped."
                    )

    @property
    def used(self) -> set[str]:
        """Return "origin:name" of every tensor that is read."""
        leaves = (leaf for _, node in self.entries for leaf in _leaves(node))
        return {f"{leaf.origin}:{leaf.name}" for leaf in leaves if isinstance(leaf, Copy)}

    @property
    def changed(self) -> tuple[tuple[str, Node], ...]:
        """Return the entries that are more than a copy under the same name."""
        return tuple((name, node) for name, node in self.entries if node != Copy(name))

    @property
    def counts(self) -> Mapping[str, int]:
        """Count the tensors of the student by where they come from."""
        counts: Counter[str] = Counter()
        for name, node in self.entries:
            drawn = [isinstance(leaf, Init) for leaf in _leaves(node)]
            if node == Copy(name):
                counts["copied unchanged"] += 1
            elif node == Copy(name, "aligned"):
                counts["of aligned mixers"] += 1
            elif all(drawn):
                counts["not from the teacher"] += 1
            else:
                counts[
                    "built in part from the teacher" if any(drawn) else "built from the teacher"
                ] += 1
        return counts

    def summary(self) -> str:
        """Say in a few lines how many tensors are copied, built, drawn and dropped."""
        lines = [f"{count:5d} {word}" for word, count in self.counts.items()]
        return "\n".join(
            [f"{len(self.entries)} tensors", *lines, f"{len(self.dropped):5d} dropped"]
        )

    def text(self) -> str:
        """List every entry that is not copied unchanged, then what is dropped and why."""
        width = max((len(name) for name, _ in self.changed), default=0)
        lines = [f"{name:{width}}  <-  {node}" for name, node in self.changed]
        lines += [f"{name}  dropped: {reason}" for name, reason in self.dropped.items()]
        return "\n".join([self.summary(), *lines])

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `from_json` reads back."""
        entries = {name: _node_to_json(node) for name, node in self.entries}
        return {"entries": entries, "dropped": dict(self.dropped), "summary": self.summary()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "WeightMap":
        """Read what `to_json` returned."""
        entries = tuple((name, _node_from_json(node)) for name, node in values["entries"].items())
        return cls(entries, values["dropped"])


def _leaves(node: Node) -> list[Node]:
    if not node.parts():
        return [node]
    return [leaf for part in node.parts() for leaf in _leaves(part)]


def _node_to_json(node: Node) -> dict[str, Any]:
    values: dict[str, Any] = {"op": type(node).__name__.lower()}
    for item in fields(node):  # type: ignore[arg-type]
        value = getattr(node, item.name)
        if isinstance(value, Node):
            value = _node_to_json(value)
        elif isinstance(value, tuple):
            value = [_node_to_json(v) if isinstance(v, Node) else v for v in value]
        values[item.name] = value
    return values


def _node_from_json(values: Mapping[str, Any]) -> Node:
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name == "op":
            continue
        if isinstance(value, Mapping):
            arguments[name] = _node_from_json(value)
        elif isinstance(value, list):
            parts = (_node_from_json(v) if isinstance(v, Mapping) else v for v in value)
            arguments[name] = tuple(parts)
        else:
            arguments[name] = value
    return _NODES[values["op"]](**arguments)
