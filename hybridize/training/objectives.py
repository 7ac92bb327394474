"""The loss of a batch: distillation from a teacher, or the next token.

Legend: B rows, T tokens, N counted tokens, D model width, V vocabulary.

A model is any module with `hidden(input_ids_BT, segments=segments_BT) -> hidden_BTD` and an
`lm_head` with a weight, and perhaps a bias and a divisor of the logits. The head is applied only
where the next token counts.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.core.errors import ModelError, RecipeError
from hybridize.core.loss_weights import LossWeight
from hybridize.ops.divergence import Head, LossTerm, Term, cross_entropy, head_losses
from hybridize.training.data import Batch, TokenSource
from hybridize.training.device import precision
from hybridize.training.distributed import Ranks, find_layers, read_batches
from hybridize.training.states import LayerLoss, compare, watched

LOSSES = {
    "reverse_kl": "hybridize.ops.divergence:reverse_kl",
    "forward_kl": "hybridize.ops.divergence:forward_kl",
    "js": "hybridize.ops.divergence:js",
    "cross_entropy": "hybridize.ops.divergence:cross_entropy",
    "hidden_states": "hybridize.training.states:hidden_states",
    "mixer_outputs": "hybridize.training.states:mixer_outputs",
}
"""Name of a loss -> where it is; a recipe may also give such a place itself."""
MOST_PADDING = 1024
"""Rows by which heads of one vocabulary may differ: models of a family are padded differently."""


@dataclass(frozen=True)
class LossSum:
    """A loss summed over the counted tokens of a batch."""

    total: Tensor
    """Weighted sum in nats, with a gradient; a single number."""
    count: int
    """Counted tokens."""
    parts: dict[str, Tensor]
    """Unweighted sum of each loss, without gradient, single numbers: nats of distributions, and
    errors of layers, which have no unit."""


Objective = Callable[[nn.Module, Batch], LossSum]


class Distillation:
    """Losses between a student and a frozen teacher: of their distributions and of their layers."""

    def __init__(
        self,
        teacher: nn.Module,
        loss: Mapping[str, float | LossWeight] | None = None,
        *,
        temperature: float = 1.0,
        chunk_tokens: int | None = None,
    ) -> None:
        """Choose the mixture.

        Args:
            loss: name -> weight; None is reverse KL alone. Weight 0 measures without training.
            temperature: softens both distributions; cross entropy stays at 1.
            chunk_tokens: tokens whose logits are held at a time; None chooses.

        Raises:
            RecipeError: an unknown loss, layers of a loss that has none or that do not exist, or a
                temperature of 0 or less.
        """
        if not temperature > 0:
            raise RecipeError(f"temperature {temperature} is not above 0. Use 1 to soften nothing.")
        self.teacher = teacher.eval()
        self.weights = dict(loss) if loss else {"reverse_kl": 1.0}
        described = {
            name: weight.model_dump() if isinstance(weight, LossWeight) else weight
            for name, weight in self.weights.items()
        }
        self.identity = {"loss": described, "temperature": temperature}
        losses = {name: find_loss(name) for name in self.weights}
        self._of_layers = {
            name: found for name, found in losses.items() if isinstance(found, LayerLoss)
        }
        self._of_tokens = {
            name: found for name, found in losses.items() if not isinstance(found, LayerLoss)
        }
        num_layers = len(find_layers(teacher))
        self._layers = {
            name: _weigh_layers(name, weight, num_layers if name in self._of_layers else None)
            for name, weight in self.weights.items()
        }
        self._temperature, self._chunk_tokens, self._share = temperature, chunk_tokens, 0.0

    def at(self, share: float) -> "Distillation":
        """Return this objective with its weights when `share` of the budget is spent, 0 to 1."""
        objective = copy(self)
        objective._share = share
        return objective

    def __call__(self, model: nn.Module, rows: Batch) -> LossSum:
        """Return the losses of `model` on a batch; the teacher runs once, without gradient.

        Raises:
            ModelError: the vocabularies differ by more than padding, or the layers in width.
        """
        places_N = rows.predicting_N
        watching = (self._of_layers, self._layers, places_N)
        with torch.no_grad(), watched(self.teacher, *watching) as teacher_states:
            teacher_ND = _hidden(self.teacher, rows, places_N)
        with watched(model, *watching) as states:
            hidden_ND = _hidden(model, rows, places_N)
        parts: dict[str, Tensor] = {}
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        if self._of_tokens:
            total, sums = self._compare_tokens(model, rows, hidden_ND, teacher_ND)
            parts.update(zip(self._of_tokens, sums, strict=True))
        for name in self._of_layers:
            error = compare(states, teacher_states, name, self._layers[name])
            parts[name] = error.detach()
            total = total + self._weight(name) * error
        return LossSum(total, len(places_N), {name: parts[name] for name in self.weights})

    def _compare_tokens(
        self, model: nn.Module, rows: Batch, hidden_ND: Tensor, teacher_ND: Tensor
    ) -> tuple[Tensor, Tensor]:
        head, teacher_head = _shared(_head(model), _head(self.teacher))
        return head_losses(
            hidden_ND,
            head,
            [
                Term(loss, self._weight(name), 1.0 if loss is cross_entropy else self._temperature)
                for name, loss in self._of_tokens.items()
            ],
            teacher_hidden_ND=teacher_ND,
            teacher_head=teacher_head,
            targets_N=rows.input_ids_BT.flatten()[rows.predicting_N + 1],
            chunk_tokens=self._chunk_tokens,
        )

    def _weight(self, name: str) -> float:
        weight = self.weights[name]
        return weight.at(self._share) if isinstance(weight, LossWeight) else weight


class NextToken:
    """Cross entropy of the token that follows, for fine-tuning on text."""

    identity: Mapping[str, Any] = {"loss": {"cross_entropy": 1.0}}

    def __init__(self, *, chunk_tokens: int | None = None) -> None:
        self._chunk_tokens = chunk_tokens

    def __call__(self, model: nn.Module, rows: Batch) -> LossSum:
        """Return the cross entropy of `model` on a batch."""
        places_N = rows.predicting_N
        total, sums = head_losses(
            _hidden(model, rows, places_N),
            _head(model),
            (Term(cross_entropy),),
            targets_N=rows.input_ids_BT.flatten()[places_N + 1],
            chunk_tokens=self._chunk_tokens,
        )
        return LossSum(total, len(places_N), {"cross_entropy": sums[0]})


def count_tokens(objective: Objective, rows: Batch) -> int:
    """Return the tokens a loss is a mean over: those that count, or those the objective counts."""
    count: Callable[[Batch], int] | None = getattr(objective, "count", None)
    return rows.num_counted if count is None else count(rows)


def at_share(objective: Objective, share: float) -> Objective:
    """Return the objective of a point of the budget; most are the same all along."""
    at: Callable[[float], Objective] = getattr(objective, "at", lambda _share: objective)
    return at(share)


def find_loss(name: str) -> LossTerm | LayerLoss:
    """Return the loss of a name in `LOSSES`, or of a place `package.module:function`.

    Raises:
        RecipeError: there is no such loss.
    """
    place = LOSSES.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        near = get_close_matches(name, LOSSES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RecipeError(f"{name!r} is not a loss (known: {', '.join(LOSSES)}).{hint}")
    try:
        loss: LossTerm | LayerLoss = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"loss {name!r} cannot be imported ({error}).") from error
    return loss


@dataclass(frozen=True)
class Mean:
    """A mean over counted tokens of several batches."""

    value: float
    """In nats per counted token."""
    standard_error: float | None
    """Of the value, from the spread between batches; None where there is only one."""


def rows_to_measure(source: TokenSource, tokens: int) -> int:
    """Return the rows of so many tokens; a source that ends is gone through once at most."""
    num_rows = max(1, tokens // source.sequence_length)
    return num_rows if source.rows_per_pass is None else min(num_rows, source.rows_per_pass)


def measure(
    model: nn.Module,
    objective: Objective,
    source: TokenSource,
    *,
    tokens: int,
    first_row: int = 0,
    rows_per_batch: int = 1,
    dtype: str = "float32",
    ranks: Ranks | None = None,
) -> dict[str, Mean]:
    """Measure each loss over the rows of `tokens` tokens, each of `ranks` a share of them.

    The model is evaluated in eval mode.
    """
    num_rows = rows_to_measure(source, tokens)
    device, ranks = next(model.parameters()).device, ranks or Ranks()
    losses: list[tuple[int, dict[str, float]]] = []
    was_training = model.training
    model.eval()
    try:
        rows = range(first_row, first_row + num_rows)
        with ranks.together():
            batches = list(read_batches(source, rows, rows_per_batch, ranks))
        for part in batches:
            with torch.no_grad(), precision(device, dtype):
                loss = objective(model, part.to(device))
            losses.append((loss.count, {name: float(nats) for name, nats in loss.parts.items()}))
    finally:
        model.train(was_training)
    found = [entry for part in ranks.gather(losses) for entry in part]
    counts = [count for count, _ in found]
    return {name: _mean([sums[name] for _, sums in found], counts) for name in found[0][1]}


def _mean(sums: list[float], counts: list[int]) -> Mean:
    """Divide two sums; the error is that of a ratio whose parts vary from batch to batch."""
    total = max(1, sum(counts))
    value = sum(sums) / total
    if len(sums) < 2:
        return Mean(value, None)
    squares = sum((nats - value * count) ** 2 for nats, count in zip(sums, counts, strict=True))
    return Mean(value, sqrt(squares * len(sums) / (len(sums) - 1)) / total)


def _weigh_layers(
    name: str, weight: float | LossWeight, num_layers: int | None
) -> dict[int, float]:
    """Return the weight of each layer of a loss, none of a loss that has no layers (None)."""
    layers = weight.layers if isinstance(weight, LossWeight) else None
    if num_layers is None:
        if layers is not None:
            raise RecipeError(f"loss {name} is not one between layers: remove its layers.")
        return {}
    if layers is None:
        return dict.fromkeys(range(num_layers), 1 / max(1, num_layers))
    for layer in layers:
        if int(layer) >= num_layers:
            raise RecipeError(
                f"loss {name}: there is no layer {layer}; layers are 0 to {num_layers - 1}."
            )
    return {int(layer): value for layer, value in layers.items()}


def _hidden(model: Any, rows: Batch, places_N: Tensor) -> Tensor:
    hidden_BTD: Tensor = model.hidden(rows.input_ids_BT, segments=rows.segments_BT)
    return hidden_BTD.flatten(0, 1)[places_N]


def _shared(head: Head, teacher: Head) -> tuple[Head, Head]:
    """Cut two heads to the tokens both have, where one is padded more than the other.

    Padding that both have counts like any token: the student learns to give it as little as the
    teacher does, and so never says it.
    """
    sizes = head.weight_VD.shape[0], teacher.weight_VD.shape[0]
    if sizes[0] == sizes[1]:
        return head, teacher
    if abs(sizes[0] - sizes[1]) > MOST_PADDING:
        raise ModelError(
            f"the student has a vocabulary of {sizes[0]} tokens, the teacher one of {sizes[1]}. "
            "Distil from a teacher with the student's tokenizer."
        )
    return _cut(head, min(sizes)), _cut(teacher, min(sizes))


def _cut(head: Head, size: int) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V[:size]
    return replace(head, weight_VD=head.weight_VD[:size], bias_V=bias_V)


def _head(model: Any) -> Head:
    head = model.lm_head
    return Head(head.weight, getattr(head, "bias", None), getattr(head, "divisor", 1.0))
