"""What is trained and how: parameter choice and groups, optimizers, schedules in tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hybridize.core.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer of a run.

    Weight decay leaves out whatever has fewer than two dimensions (norms, biases), the parameters
    of a recurrence or a short convolution (`A_log`, `D`, `dt*`, `conv*`) and embeddings, tied heads
    included: none of them is a linear map that smaller weights would regularise.
    """

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` takes the hidden matrices and leaves the rest to AdamW: embeddings, head, and all
    that has no decay. Its step has the RMS of AdamW's, so that one learning rate serves both."""
    lr: float = 3e-4
    """Highest learning rate; the schedule scales it."""
    weight_decay: float = 0.1
    """Share of the weight taken off per step and unit of learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Memory of AdamW's two moments."""
    momentum: float = 0.95
    """Memory of Muon's gradient."""

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise RecipeError(f"{self.name!r} is not an optimizer (known: adamw, muon).")
        if not self.lr >= 0:
            raise RecipeError(f"optimizer.lr {self.lr} is not a learning rate. Choose 0 or more.")


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """How the learning rate changes over the tokens of a run."""

    name: Literal["constant", "cosine", "wsd"] = "constant"
    """`wsd` is warm-up, stable, then a linear decay; `cosine` decays from the warm-up on."""
    warmup: float = 0.0
    """Share of the run (0..1) in which the learning rate rises from 0, for all three."""
    decay: float = 0.2
    """Share of the run (0..1) in which `wsd` falls to `final`."""
    final: float = 0.0
    """Learning rate at the end, as a share of the highest, for `cosine` and `wsd`."""

    def __post_init__(self) -> None:
        if self.name not in ("constant", "cosine", "wsd"):
            raise RecipeError(f"{self.name!r} is not a schedule (known: constant, cosine, wsd).")
        for name in ("warmup", "decay", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(
                    f"schedule.{name} {getattr(self, name)} is not a share. Choose 0% to 100%."
                )

    def scale(self, before: int, after: int, total: int) -> float:
        """Return the factor (0..1) of the step from `before` to `after` of `total` tokens.

        It is taken at the end of the step while it rises and at its start while it falls, so that
        no step is lost at a learning rate of 0.
        """
        rise = min(1.0, after / (self.warmup * total)) if self.warmup else 1.0
        left = (total - before) / total
        match self.name:
            case "constant":
                fall = 1.0
            case "cosine":
                fall = (1 - cos(pi * min(1.0, left / max(1 - self.warmup, 1e-9)))) / 2
            case "wsd":
                fall = min(1.0, left / self.decay) if self.decay else 1.0
        return rise * (self.final + (1 - self.final) * fall)


class Optimizers:
    """The optimizers of one run as one, with a state that is a flat dictionary of tensors."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], settings: OptimizerSettings
    ) -> None:
        self._lr = settings.lr
        self._names = {parameter: name for name, parameter in parameters.items()}
        tables = {
            id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
        }
        head = getattr(getattr(model, "lm_head", None), "weight", None)
        muon, decayed, others = [], [], []
        for name, parameter in parameters.items():
            if id(parameter) in tables or not _is_map(name, parameter):
                others.append(parameter)
            elif settings.name == "adamw" or parameter is head:
                decayed.append(parameter)
            else:
                muon.append(parameter)
        common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": others, "weight_decay": 0.0},
        ]
        self._parts: list[torch.optim.Optimizer] = []
        if decayed or others:
            self._parts.append(
                torch.optim.AdamW(groups, betas=settings.betas, fused=True, **common)
            )
        if muon:
            common |= {"momentum": settings.momentum, "adjust_lr_fn": "match_rms_adamw"}
            split = any(isinstance(parameter, DTensor) for parameter in muon)
            self._parts.append((GatheredMuon if split else torch.optim.Muon)(muon, **common))

    def step(self, scale: float) -> float:
        """Make one update at `scale` times the highest learning rate; return the rate."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._lr * scale
            part.step()
            part.zero_grad(set_to_none=True)
        return self._lr * scale

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state, keyed by `parameter name/quantity`."""
        return {
            f"{self._names[parameter]}/{key}": value
            for part in self._parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        values: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            values.setdefault(name, {})[quantity] = value
        for part in self._parts:
            parameters = [p for group in part.param_groups for p in group["params"]]
            names = [self._names[parameter] for parameter in parameters]
            state = {n: values[name] for n, name in enumerate(names) if name in values}
            part.load_state_dict({**part.state_dict(), "state": state})


class GatheredMuon(torch.optim.Muon):
    """Muon for matrices that are split over ranks: it needs each whole.

    One matrix after the other is put together on every rank, updated there, and split again; the
    momentum stays split between steps.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update."""
        for group in self.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                whole = nn.Parameter(parameter.full_tensor())
                whole.grad = parameter.grad.full_tensor()
                inner = torch.optim.Muon([whole], **options)
                for key, value in self.state[parameter].items():
                    inner.state[whole][key] = value.full_tensor()
                inner.step()
                parameter.copy_(_split_like(parameter, whole))
                for key, value in inner.state[whole].items():
                    self.state[parameter][key] = _split_like(parameter, value)


def _split_like(like: Any, whole: Tensor) -> DTensor:
    return distribute_tensor(whole.detach(), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def training_only(model: nn.Module, train: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Let gradients reach the chosen parameters only; yield them by name; undo it at the end.

    Args:
        train: see `choose_parameters`.

    Raises:
        RecipeError: nothing is chosen.
    """
    chosen = choose_parameters(model, train)
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        yield chosen
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def choose_parameters(model: nn.Module, train: Sequence[str]) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name; a tied head counts once.

    Args:
        train: `all`, `mixer` (the mixers of converted layers), or glob patterns of names.

    Raises:
        RecipeError: nothing is chosen.
    """
    patterns = [
        "*" if word == "all" else "*.mixer.*" if word == "mixer" else word for word in train
    ]
    named = dict(model.named_parameters())
    chosen = {
        name: parameter
        for name, parameter in named.items()
        if any(fnmatch(f".{name}", pattern) or fnmatch(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise RecipeError(
            f"train {', '.join(train)} chooses no parameter of the student. "
            f"Choose all, mixer, or patterns of names like {next(iter(named), '')}."
        )
    return chosen


def _is_map(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a linear map, by its dimensions and the end of its name."""
    special = any(
        word in ("A_log", "D") or word.startswith("dt") or "conv" in word
        for word in name.split(".")[-2:]
    )
    return parameter.ndim == 2 and not special
