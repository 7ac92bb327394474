"""fit(): the one training loop, for distillation, fine-tuning and short probes alike.

The place in the data is a number of steps, so a run continues from its checkpoint bit for bit.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridize.core.artifacts import plain
from hybridize.core.errors import Interrupted, RunError
from hybridize.core.quantities import short_count
from hybridize.training.checkpoint import RunCheckpoint
from hybridize.training.data import Batch, TokenSource
from hybridize.training.device import peak_gib, precision, seeded
from hybridize.training.distributed import Ranks, prepared_layers, read_batches, whole_tensor
from hybridize.training.metrics import LeftOut, MetricsFile, Progress, StepRecord
from hybridize.training.objectives import Objective, at_share, count_tokens, measure
from hybridize.training.optim import Optimizers, training_only
from hybridize.training.settings import Budget, FitResult, FitSettings, Heldout
from hybridize.training.signals import catch_signals

FREE = (
    "rows_per_microbatch",
    "checkpoint_every",
    "evaluate_every",
    "skip_bad_batches",
    "activation_checkpointing",
    "compile",
)
"""Settings that may change between an interrupted run and its continuation."""


def fit(
    model: nn.Module,
    objective: Objective,
    source: TokenSource,
    settings: FitSettings,
    out: Path | None = None,
    *,
    heldout: Heldout | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> FitResult:
    """Train `model` in place; continue from `out/checkpoint` where there is one.

    A step is one update by the mean loss over all counted tokens of its rows, however these are
    split into microbatches and over ranks. A model that `distributed.shard` has split is trained by
    all its ranks together: each calls this with the same arguments, and the first writes the files.

    Args:
        out: folder for `metrics.jsonl` and `checkpoint/`; None keeps nothing.
        heldout: measured before the first step, every `evaluate_every` tokens, and at the end.
        progress: called with the record of each step.
        stop: asked after each step; True ends the run as an interrupt does.

    Raises:
        RecipeError: the settings choose nothing to train.
        RunError: a loss or gradient is not finite, once more than `skip_bad_batches` allows, or
            the checkpoint is damaged or of another run.
        Interrupted: on SIGINT, SIGTERM or `stop`, after the step and its checkpoint.
    """
    was_training = model.training
    device = next(model.parameters()).device
    with (
        catch_signals() as signalled,
        seeded(device, settings.seed + Ranks.of(model).rank),
        prepared_layers(
            model, recompute=settings.activation_checkpointing, compiled=settings.compile
        ),
        training_only(model, settings.train) as parameters,
    ):
        run = _Run(model, objective, source, settings, out, heldout, parameters)
        try:
            return run.train(progress, lambda: bool(signalled() or (stop and stop())))
        except Interrupted as asked:
            raise Interrupted(str(asked), terminated=signalled() == signal.SIGTERM) from None
        finally:
            run.close()
            model.train(was_training)


class _Run:
    """One training run: what stays the same, and its `state`, which a checkpoint keeps."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        source: TokenSource,
        settings: FitSettings,
        out: Path | None,
        heldout: Heldout | None,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        self.model, self.objective, self.source, self.settings = model, objective, source, settings
        self.out, self.heldout, self.parameters = out, heldout, parameters
        self.device, self.ranks = next(model.parameters()).device, Ranks.of(model)
        self.optimizers = Optimizers(model, parameters, settings.optimizer)
        self.budget = Budget.of(settings, source.sequence_length)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss": inf}
        self.state |= {"metrics_bytes": 0, "left_out": 0}
        self.checkpoint = self.metrics = saved = None
        if out is not None:
            what = _describe(settings, objective, source)
            self.checkpoint = RunCheckpoint(
                out / "checkpoint", model, parameters, self.optimizers, what
            )
            saved = self.checkpoint.resume()
        if saved is None:
            self.state["heldout_before"] = self.state["heldout"] = self._measure()
        self.state.update(saved or {})
        with self.ranks.together():
            if out is not None and self.ranks.is_first:
                self.metrics = MetricsFile(out / "metrics.jsonl", self.state["metrics_bytes"])

    def close(self) -> None:
        """Let go of files and gradients."""
        self.model.zero_grad(set_to_none=True)
        if self.metrics is not None:
            self.metrics.close()

    def train(self, progress: Progress | None, stop: Callable[[], bool]) -> FitResult:
        """Run the steps that are left."""
        self.model.train()
        while self.state["step"] < self.budget.num_steps:
            record = self._step()
            last = record.step == self.budget.num_steps
            if last or self.budget.is_due(record.step, self.settings.evaluate_every):
                self.state["heldout"] = self._measure()
                record = replace(record, heldout=self.state["heldout"])
            with self.ranks.together():
                if self.metrics is not None:
                    self.metrics.write(record)
            if progress is not None:
                progress(record)
            stopping = self.ranks.any(stop()) and not last
            if last or stopping or self.budget.is_due(record.step, self.settings.checkpoint_every):
                self._save()
            if stopping:
                raise Interrupted(self._how_to_continue())
        state = self.state
        return FitResult(
            tokens=self.budget.tokens(state["step"]),
            steps=state["step"],
            rows=self.budget.total_rows,
            seconds=state["seconds"],
            loss=state["loss"],
            heldout_before=state["heldout_before"],
            heldout=state["heldout"],
            trainable=sum(parameter.numel() for parameter in self.parameters.values()),
        )

    def _step(self) -> StepRecord:
        started, settings = time.monotonic(), self.settings
        state, budget = self.state, self.budget
        before, after = budget.tokens(state["step"]), budget.tokens(state["step"] + 1)
        total, num_steps = budget.tokens(budget.num_steps), budget.num_steps
        step_rows, size = budget.rows(state["step"]), settings.rows_per_microbatch
        with self.ranks.together():
            batches = list(read_batches(self.source, step_rows, size, self.ranks))
        counts = [count_tokens(self.objective, rows) for rows in batches]
        count = int(self.ranks.sum([sum(counts)])[0])
        totals, parts = [], dict[str, Any]()
        objective = at_share(self.objective, before / total)
        for rows in batches:
            with precision(self.device, settings.dtype):
                loss = objective(self.model, rows.to(self.device))
            torch.autograd.backward(loss.total / count)
            totals.append(loss.total.detach())
            for name, nats in loss.parts.items():
                parts[name] = parts.get(name, 0) + nats / count
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), settings.grad_clip or inf)
        *sums, grad_norm = torch.stack([*totals, whole_tensor(norm)]).tolist()
        total_nats, *means = self.ranks.sum([sum(sums), *map(float, parts.values())])
        lr, left_out = 0.0, None
        if isfinite(total_nats) and isfinite(grad_norm):
            lr = self.optimizers.step(settings.schedule.scale(before, after, total))
            state["loss"] = total_nats / count
        else:
            left_out = self._leave_out(batches, sums, step_rows)
        seconds = time.monotonic() - started
        state.update(step=state["step"] + 1, seconds=state["seconds"] + seconds)
        return StepRecord(
            step=state["step"],
            num_steps=num_steps,
            tokens=after,
            total_tokens=total,
            counted_tokens=count,
            loss=state["loss"],
            parts=dict(zip(parts, means, strict=True)),
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=(after - before) / seconds,
            seconds=state["seconds"],
            peak_gib=peak_gib(self.device),
            eta_seconds=state["seconds"] / state["step"] * (num_steps - state["step"]),
            left_out=left_out,
        )

    def _leave_out(self, batches: list[Batch], sums: list[float], step_rows: range) -> LeftOut:
        """Count a step without an update, and name its data, or the microbatches to blame.

        Raises:
            RunError: it is one more than may be left out.
        """
        own = [
            range(rows.first_row, rows.first_row + len(rows.input_ids_BT))
            for rows, nats in zip(batches, sums, strict=True)
            if not isfinite(nats)
        ]
        bad = [rows for found in self.ranks.gather(own) for rows in found]
        what = "the loss" if bad else "the gradient"
        first, last = (bad or [step_rows])[0].start, (bad or [step_rows])[-1].stop - 1
        if self.state["left_out"] >= min(self.settings.skip_bad_batches, self.budget.num_steps - 1):
            raise RunError(
                f"step {self.state['step'] + 1}: {what} is not finite, data rows {first} to "
                f"{last}. The checkpoint before stands: lower optimizer.lr or grad_clip, look at "
                "these rows, or leave out more such steps (skip_bad_batches, at present "
                f"{self.settings.skip_bad_batches})."
            )
        self.state["left_out"] += 1
        self.model.zero_grad(set_to_none=True)
        return LeftOut(what, (first, last))

    def _measure(self) -> dict[str, float] | None:
        if self.heldout is None:
            return None
        means = measure(
            self.model,
            self.heldout.objective or self.objective,
            self.heldout.source,
            tokens=self.heldout.tokens,
            rows_per_batch=self.heldout.rows_per_batch or self.settings.rows_per_microbatch,
            dtype=self.settings.dtype,
            ranks=self.ranks,
        )
        losses = {name: mean.value for name, mean in means.items()}
        if not all(isfinite(nats) for nats in losses.values()):
            raise RunError(
                f"after step {self.state['step']} the held-out loss is not finite ({losses}). "
                "The checkpoint before stands: lower optimizer.lr."
            )
        return losses

    def _save(self) -> None:
        with self.ranks.together():
            if self.metrics is not None:
                self.state["metrics_bytes"] = self.metrics.sync()
        if self.checkpoint is not None:
            self.checkpoint.save(self.state)

    def _how_to_continue(self) -> str:
        step, num_steps = self.state["step"], self.budget.num_steps
        done, total = (short_count(self.budget.tokens(n)) for n in (step, num_steps))
        where = f"stopped after step {step} of {num_steps}, {done} of {total} "
        if self.out is None:
            return f"{where}tokens; nothing was kept, because no folder was given."
        return f"{where}tokens; the checkpoint is in {self.out}. Run the same again to continue."


def _describe(settings: FitSettings, objective: Objective, source: TokenSource) -> dict[str, Any]:
    """Return all that must stay the same for a continued run to equal an unbroken one."""
    return {
        **{key: value for key, value in plain(settings).items() if key not in FREE},
        "objective": plain(getattr(objective, "identity", {})),
        "data": plain(source.identity),
    }
