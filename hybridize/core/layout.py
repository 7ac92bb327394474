"""Layout: which mixer sits in which layer: convert, compare, count, print and parse."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from hybridize.core.errors import ModelError

LETTERS = {
    "attention": "A",
    "mamba2": "M",
    "mamba1": "m",
    "gated_delta": "G",
    "sliding": "W",
    "identity": "I",
}
_KINDS = {letter: kind for kind, letter in LETTERS.items()}
_NAMES = {
    "attention": "attention",
    "mamba2": "Mamba-2",
    "mamba1": "Mamba-1",
    "gated_delta": "Gated DeltaNet",
    "sliding": "sliding-window attention",
    "identity": "no mixer",
}
_KIND = re.compile(r"[A-Za-z_][\w.:]*")
_RUN = re.compile(rf"({_KIND.pattern})(?:\*(\d+))?")
_PER_GROUP = 10


@dataclass(frozen=True, repr=False)
class Layout:
    """The mixer kind of each layer, layer 0 first. Printed as a strip: `AAAMMAAAAA MM`."""

    mixers: tuple[str, ...]

    def __post_init__(self) -> None:
        for layer, kind in enumerate(self.mixers):
            if not _KIND.fullmatch(kind) or set(kind) <= set(_KINDS):
                raise ModelError(
                    f"layout, layer {layer}: {kind!r} cannot name a mixer. "
                    f"Use one of {', '.join(LETTERS)}, or package.module:Name."
                )

    @classmethod
    def uniform(cls, num_layers: int, kind: str = "attention") -> "Layout":
        """Make a layout with the same mixer in every layer."""
        return cls((kind,) * num_layers)

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read either printed form: a strip of letters, or runs such as `attention*6 mamba2`.

        Raises:
            ModelError: a letter or a run that means nothing, or no layer at all.
        """
        letters = "".join(text.split())
        if letters and set(letters) <= set(_KINDS):
            return cls(tuple(_KINDS[letter] for letter in letters))
        mixers: list[str] = []
        for word in text.split():
            match = _RUN.fullmatch(word)
            if match is None or (match[1].isupper() and match[2] is None):
                raise ModelError(
                    f"layout {text!r}: {word!r} is neither letters ({', '.join(_KINDS)}) "
                    "nor a run such as attention*6."
                )
            mixers.extend([match[1]] * int(match[2] or 1))
        if not mixers:
            raise ModelError(f"layout {text!r} has no layers. Write one letter for each layer.")
        return cls(tuple(mixers))

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.mixers)

    @property
    def converted(self) -> tuple[int, ...]:
        """The layers whose mixer is not attention."""
        return tuple(layer for layer, kind in enumerate(self.mixers) if kind != "attention")

    def layers(self, kind: str) -> tuple[int, ...]:
        """List the layers that hold `kind`."""
        return tuple(layer for layer, mixer in enumerate(self.mixers) if mixer == kind)

    def convert(self, layers: Iterable[int], *, to: str) -> "Layout":
        """Return this layout with the mixer of `layers` replaced by `to`.

        Raises:
            ModelError: a layer that does not exist.
        """
        mixers = list(self.mixers)
        for layer in layers:
            if not 0 <= layer < self.num_layers:
                raise ModelError(
                    f"layer {layer} does not exist: the layout has layers 0 to "
                    f"{self.num_layers - 1} ({self})."
                )
            mixers[layer] = to
        return Layout(tuple(mixers))

    def diff(self, other: "Layout") -> tuple[int, ...]:
        """List the layers in which two layouts of the same length differ.

        Raises:
            ModelError: the layouts have different numbers of layers.
        """
        if self.num_layers != other.num_layers:
            raise ModelError(
                f"layouts of {self.num_layers} and {other.num_layers} layers cannot be compared: "
                f"{self} and {other}."
            )
        pairs = enumerate(zip(self.mixers, other.mixers, strict=True))
        return tuple(layer for layer, (ours, theirs) in pairs if ours != theirs)

    def strip(self) -> str:
        """Print one letter a layer, in groups of ten; only for kinds that have a letter."""
        letters = "".join(LETTERS[kind] for kind in self.mixers)
        starts = range(0, len(letters), _PER_GROUP)
        return " ".join(letters[start : start + _PER_GROUP] for start in starts)

    def runs(self) -> str:
        """Print runs of equal mixers: `attention*6 mamba2 attention*3`."""
        counted = ((kind, len(list(group))) for kind, group in groupby(self.mixers))
        return " ".join(kind if count == 1 else f"{kind}*{count}" for kind, count in counted)

    def __str__(self) -> str:
        """Print the strip, or the runs where a kind has no letter."""
        return self.strip() if set(self.mixers) <= set(LETTERS) else self.runs()

    def __repr__(self) -> str:
        return f"Layout({str(self)!r})"


def explain_letters(layouts: Iterable[Layout]) -> str:
    """Say what the letters in layouts stand for: `A is attention, M is Mamba-2`."""
    used = {mixer for layout in layouts for mixer in layout.mixers}
    return ", ".join(
        f"{LETTERS[mixer]} is {name}" for mixer, name in _NAMES.items() if mixer in used
    )
