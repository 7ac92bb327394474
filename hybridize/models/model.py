"""A model as the stages hand it on: its name, its network and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.core.errors import ModelError
from hybridize.core.layout import Layout
from hybridize.models.folders import save_model
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.loading import find_tokenizer, load_model


@dataclass(frozen=True, repr=False)
class Model:
    """A teacher or student with its tokenizer; `convert` and `distill` return new ones."""

    name: str
    """How tables and figures call it: `teacher`, `h6`, `merge`."""
    network: HybridForCausalLM
    tokenizer: Any
    """Its Hugging Face tokenizer; None for a model without one."""

    @property
    def layout(self) -> Layout:
        """Which mixer sits in which layer."""
        return self.network.layout

    @property
    def num_parameters(self) -> int:
        """Number of distinct parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def need_tokenizer(self) -> Any:
        """Return the tokenizer.

        Raises:
            ModelError: the model has none.
        """
        if self.tokenizer is None:
            raise ModelError(
                f"model {self.name} has no tokenizer, which text is read and written with. "
                "Copy the teacher's tokenizer files into its folder."
            )
        return self.tokenizer

    def save(self, folder: Path | str) -> Path:
        """Write a folder that `AutoModelForCausalLM` and `load` read back, whole or not at all."""
        return save_model(self.network, self.tokenizer, Path(folder))

    def __repr__(self) -> str:
        return f"{self.name}  {self.layout}  {self.num_parameters / 1e6:.2f}M parameters"


def load(
    model: Path | str,
    *,
    name: str = "teacher",
    dtype: str | None = "float32",
    revision: str | None = None,
) -> Model:
    """Load a teacher or a student from a folder, a hub id, or `shipped` for the shipped teacher.

    A dtype of None keeps the one the tensors are saved in.

    Raises:
        ModelError: the folder is incomplete, damaged, unsafe to read, or of an unknown family.
    """
    kept = None if dtype is None else getattr(torch, dtype)
    network = load_model(model, dtype=kept, revision=revision)
    return Model(name, network, find_tokenizer(model, revision=revision))
