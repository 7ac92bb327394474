"""Mixers trained before against the attention of their layers: a folder of them, and taking some.

A folder holds `layer-03.safetensors` for each layer, with the tensors under the names they have in
a student, and `aligned.json`, written last, which says what they are. Any selection of the layers
fits any layout, because no mixer was trained with another one in the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridize.core.artifacts import give_usual_permissions, plain, read_json, write_json
from hybridize.core.errors import MachineError, ModelError
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers import Mixer

CONTENTS = "aligned.json"


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far one mixer is from the attention of its layer, on held-out text."""

    layer: int
    before: float | None
    """Mean over tokens of the length of the difference by that of the attention's output, as the
    mixer started; None where no text was held out."""
    after: float | None
    """The same, trained."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AlignedMixers:
    """A folder of aligned mixers."""

    folder: Path
    kind: str
    """Mixer kind."""
    options: Mapping[str, Any]
    """Options of the kind."""
    errors: tuple[LayerError, ...]
    """The layers that are there, and how near each mixer comes."""

    @classmethod
    def read(cls, folder: Path | str) -> "AlignedMixers":
        """Read what a folder holds, and no tensors.

        Raises:
            ModelError: it holds no aligned mixers.
        """
        path = Path(folder) / CONTENTS
        if not path.is_file():
            raise ModelError(
                f"{folder} holds no aligned mixers: {CONTENTS} is missing. "
                "Make them with `hybridize align`, or name the folder it wrote."
            )
        try:
            values = read_json(path)
            errors = tuple(LayerError(**entry) for entry in values["errors"])
            kind, options = values["kind"], dict(values["options"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{path} is damaged ({error}). Make it again.") from error
        return cls(folder=Path(folder), kind=kind, options=options, errors=errors)

    @property
    def layers(self) -> tuple[int, ...]:
        """List the layers that are there."""
        return tuple(entry.layer for entry in self.errors)

    def __str__(self) -> str:
        """Print a table of the layers."""
        lines = [f"{self.kind}, aligned: distance from the attention by the length of its output"]
        lines.append("layer  before  after")
        for entry in self.errors:
            cells = ("-" if e is None else f"{e:.3f}" for e in (entry.before, entry.after))
            lines.append("{:>5}  {:>6}  {:>5}".format(entry.layer, *cells))
        return "\n".join(lines)

    __repr__ = __str__

    def save(self, mixers: Mapping[int, Mixer]) -> None:
        """Write the mixers into the folder, a file for each layer, and what they are last.

        Raises:
            MachineError: the disk is full or refuses.
        """
        for layer, mixer in mixers.items():
            tensors = mixer.state_dict(prefix=f"model.layers.{layer}.mixer.")
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            file = self._file(layer)
            partial = file.with_suffix(".partial")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_file(kept, partial, metadata={"format": "pt"})
                give_usual_permissions(partial)
                partial.replace(file)
            except (OSError, SafetensorError) as error:
                partial.unlink(missing_ok=True)
                raise MachineError(
                    f"{file} could not be written ({error}). Make room and run again."
                ) from error
        contents = {"kind": self.kind, "options": self.options, "errors": self.errors}
        write_json(self.folder / CONTENTS, plain(contents))

    def take(self, name: str) -> Tensor:
        """Read a tensor by its name in a student, `model.layers.3.mixer.out_proj.weight`.

        Raises:
            ModelError: the file of the layer is missing or damaged.
        """
        file = self._file(int(name.split(".")[2]))
        try:
            with safe_open(file, framework="pt") as tensors:
                tensor: Tensor = tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{file}: {name} cannot be read ({error}). Align the layer again."
            ) from error
        return tensor

    def check(self, student: HybridForCausalLM, layers: Sequence[int]) -> None:
        """Check that the mixers of some layers of a student were aligned as it has them.

        Raises:
            ModelError: another kind, other options, or a layer that is not there.
        """
        for layer in layers:
            kind = student.layout.mixers[layer]
            if kind == "attention":
                continue
            options = student.config.mixer_options.get(kind, {})
            if kind != self.kind or plain(options) != plain(self.options):
                raise ModelError(
                    f"layer {layer} becomes {kind} {dict(options)}, but {self.folder} holds "
                    f"{self.kind} {dict(self.options)}. Align that mixer, or take these options."
                )
            if layer not in self.layers:
                there = ", ".join(map(str, self.layers))
                raise ModelError(
                    f"{self.folder} holds no mixer for layer {layer}, only for {there}. "
                    "Align that layer too."
                )

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:02d}.safetensors"


def take_aligned(
    init: str, folder: Path | None, student: HybridForCausalLM, layers: Sequence[int]
) -> Callable[[str], Tensor]:
    """Return what reads the aligned tensors of a conversion, checked; nothing is read yet.

    Args:
        folder: of the mixers, which is not looked at for another init.
        student: the student to be made, whose values are not read.
        layers: the layers that are converted.

    Raises:
        ModelError: init is "aligned", and the mixers are not there or do not fit.
    """
    if init != "aligned":
        folder = None
    elif folder is None:
        raise ModelError(
            "init aligned needs mixers that were aligned before. "
            "Name their folder, or use init: from_attention."
        )
    aligned = None if folder is None else AlignedMixers.read(folder)
    if aligned is not None:
        aligned.check(student, layers)

    def take(name: str) -> Tensor:
        assert aligned is not None, "only a map of init aligned asks"
        tensor, wanted = aligned.take(name), student.get_parameter(name).shape
        if tensor.shape != wanted:
            raise ModelError(
                f"{aligned.folder}: {name} has shape {tuple(tensor.shape)}, not {tuple(wanted)}. "
                "Align mixers to this teacher."
            )
        return tensor

    return take
