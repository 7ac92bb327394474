"""What answers problems: a model in this process, of our class or of a stock one."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Protocol

import torch

from hybridize.evaluation.answers import Answer, Progress, Question, answer
from hybridize.evaluation.sampling import Sampling
from hybridize.models.model import Model
from hybridize.models.stock import load_stock

PACKAGES = ("hybridize", "torch", "transformers", "tokenizers")


class Subject(Protocol):
    """Anything that answers problems."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def layout(self) -> str:
        """Strip of the mixers; empty where it is not known."""
        ...

    def answer(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        batch: int,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Return `sampling.samples` answers per question, in the order asked."""
        ...

    def machine(self) -> dict[str, Any]:
        """Return what computes: class or server, device, precision, threads."""
        ...


@dataclass(frozen=True)
class InProcess:
    """A model of this process, of our class or of one of transformers' own."""

    name: str
    layout: str
    network: Any
    tokenizer: Any

    @classmethod
    def of(cls, model: Model) -> "InProcess":
        """Take a model as the stages hand it on.

        Raises:
            ModelError: it has no tokenizer.
        """
        return cls(model.name, str(model.layout), model.network, model.need_tokenizer())

    @classmethod
    def load_stock(
        cls, folder: Path | str, *, name: str, dtype: str = "float32", device: Any = None
    ) -> "InProcess":
        """Load a folder with the class of transformers that its config.json names.

        Raises:
            ModelError: it cannot be loaded so, or has no tokenizer.
        """
        network, tokenizer = load_stock(folder, dtype=getattr(torch, dtype))
        return cls(name, "", network.to(device or "cpu"), tokenizer)

    def answer(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        batch: int,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """See `Subject`."""
        return answer(
            self.network.eval(),
            self.tokenizer,
            questions,
            batch=batch,
            sampling=sampling,
            progress=progress,
        )

    def machine(self) -> dict[str, Any]:
        """See `Subject`."""
        return {
            "class": type(self.network).__name__,
            "device": str(self.network.device),
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    @property
    def training_window(self) -> int | None:
        """Tokens per row in the last training; None where it is not known."""
        return getattr(self.network.config, "last_training_window", None)


def describe_versions(*more: str) -> dict[str, str]:
    """Return the versions that decide a score: Python's and those of packages."""
    versions = {"python": python_version()}
    for package in (*PACKAGES, *more):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
