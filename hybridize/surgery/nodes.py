"""The expressions of a weight map: Copy, Slice, Concat, Repeat, Scale, Times, RowSum and Init.

Each is a frozen value over the tensors of four origins: `student`, the model before a conversion;
`teacher`, the model with the original attention; `init`, the mixers as they would be drawn at
random; `aligned`, mixers that were trained before, each against its layer's attention.
Its shape can be worked out, and checked, before any tensor is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridize.core.errors import ModelError

Shape = tuple[int, ...]
Shapes = Mapping[str, Mapping[str, Shape]]
"""Origin ("student", "teacher", "init" or "aligned") -> tensor name -> shape."""
Fetch = Callable[[str, str], Tensor]
"""Called with (origin, name)."""


class Node:
    """An expression that gives a tensor."""

    def shape(self, shapes: Shapes) -> Shape:
        """Work out the shape; ModelError if the parts do not fit."""
        raise NotImplementedError

    def evaluate(self, fetch: Fetch) -> Tensor:
        """Make the tensor."""
        raise NotImplementedError

    def parts(self) -> tuple["Node", ...]:
        """List the expressions this one is made of."""
        return ()


@dataclass(frozen=True)
class Copy(Node):
    """A tensor of the student before, of the teacher, or of an aligned mixer, as it is."""

    name: str
    origin: str = "student"

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        if self.name not in shapes[self.origin]:
            raise ModelError(f"weight map: the {self.origin} has no tensor {self.name}.")
        return shapes[self.origin][self.name]

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        return fetch(self.origin, self.name)

    def __str__(self) -> str:
        return self.name if self.origin == "student" else f"{self.origin}:{self.name}"


@dataclass(frozen=True)
class Slice(Node):
    """Rows `start` to `stop` of an expression."""

    node: Node
    start: int
    stop: int

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        whole = self.node.shape(shapes)
        if not 0 <= self.start < self.stop <= whole[0]:
            raise ModelError(
                f"weight map: {self.node} has {whole[0]} rows, so no rows {self.start}:{self.stop}."
            )
        return (self.stop - self.start, *whole[1:])

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        return self.node.evaluate(fetch)[self.start : self.stop]

    def parts(self) -> tuple[Node, ...]:
        """See `Node.parts`."""
        return (self.node,)

    def __str__(self) -> str:
        return f"{self.node}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Concat(Node):
    """Expressions below each other, along the rows."""

    nodes: tuple[Node, ...]

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        found = [node.shape(shapes) for node in self.nodes]
        if len({shape[1:] for shape in found}) != 1:
            raise ModelError(f"weight map: {self} cannot be joined, the shapes are {found}.")
        return (sum(shape[0] for shape in found), *found[0][1:])

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        made = [node.evaluate(fetch) for node in self.nodes]
        return torch.cat([tensor.to(made[0].dtype) for tensor in made])

    def parts(self) -> tuple[Node, ...]:
        """See `Node.parts`."""
        return self.nodes

    def __str__(self) -> str:
        return f"[{'; '.join(str(node) for node in self.nodes)}]"


@dataclass(frozen=True)
class Repeat(Node):
    """Each block of `block` rows (or columns, with dim 1) `times` times in a row."""

    node: Node
    times: int
    block: int
    dim: int = 0

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        whole = list(self.node.shape(shapes))
        if whole[self.dim] % self.block:
            raise ModelError(
                f"weight map: {self.node} has {whole[self.dim]} entries, no multiple of "
                f"{self.block}."
            )
        whole[self.dim] *= self.times
        return tuple(whole)

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        tensor = self.node.evaluate(fetch)
        blocks = tensor.unflatten(self.dim, (-1, self.block))
        return blocks.repeat_interleave(self.times, dim=self.dim).flatten(self.dim, self.dim + 1)

    def parts(self) -> tuple[Node, ...]:
        """See `Node.parts`."""
        return (self.node,)

    def __str__(self) -> str:
        return f"repeat({self.node}, {self.times}x, blocks of {self.block})"


@dataclass(frozen=True)
class Scale(Node):
    """An expression times a number."""

    node: Node
    factor: float

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        return self.node.shape(shapes)

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        return self.node.evaluate(fetch) * self.factor

    def parts(self) -> tuple[Node, ...]:
        """See `Node.parts`."""
        return (self.node,)

    def __str__(self) -> str:
        return f"{self.factor:g} * {self.node}"


@dataclass(frozen=True)
class Times(Node):
    """Each row of an expression times its own entry of a vector."""

    node: Node
    factors: Node

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        whole, factors = self.node.shape(shapes), self.factors.shape(shapes)
        if factors != whole[:1]:
            raise ModelError(
                f"weight map: {self.node} has {whole[0]} rows, but {self.factors} has the shape "
                f"{factors}."
            )
        return whole

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        tensor, factors = self.node.evaluate(fetch), self.factors.evaluate(fetch)
        return tensor * factors.view(-1, *[1] * (tensor.ndim - 1))

    def parts(self) -> tuple[Node, ...]:
        """See `Node.parts`."""
        return (self.node, self.factors)

    def __str__(self) -> str:
        return f"{self.factors} * {self.node}"


@dataclass(frozen=True)
class RowSum(Node):
    """The sum of each row of an expression, as a vector."""

    node: Node

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        return self.node.shape(shapes)[:1]

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        return self.node.evaluate(fetch).flatten(1).sum(1)

    def parts(self) -> tuple[Node, ...]:
        """See `Node.parts`."""
        return (self.node,)

    def __str__(self) -> str:
        return f"row sums of {self.node}"


@dataclass(frozen=True)
class Init(Node):
    """A tensor of a mixer as its own `reset` draws it, without any teacher."""

    name: str

    def shape(self, shapes: Shapes) -> Shape:
        """See `Node.shape`."""
        if self.name not in shapes["init"]:
            raise ModelError(f"weight map: the mixer has no tensor {self.name} to draw.")
        return shapes["init"][self.name]

    def evaluate(self, fetch: Fetch) -> Tensor:
        """See `Node.evaluate`."""
        return fetch("init", self.name)

    def __str__(self) -> str:
        return "init"
