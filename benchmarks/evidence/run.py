"""Run an arm with one seed, and keep what came out as JSON; what is kept already is left alone."""

import fcntl
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import hybridize as hz
from benchmarks.evidence.arms import (
    ARMS,
    MERGE_WEIGHTS,
    PROBE_STEPS,
    PROBE_TOKENS,
    SFT_TOKENS,
    Arm,
)
from hybridize.core.artifacts import read_json, write_json
from hybridize.core.importance import Importance
from hybridize.evaluation.answers import answer, problems
from hybridize.evaluation.scores import score
from hybridize.evaluation.subjects import describe_versions
from hybridize.models.model import Model, load
from hybridize.pipeline.translate import make_calibration
from hybridize.stages import distill, merge, sft
from hybridize.stages.importance import (
    LeaveOneOutSettings,
    ReplaceOneSettings,
    leave_one_out,
    replace_one,
)
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.data import TaskRows
from hybridize.training.objectives import Distillation, measure
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitResult, FitSettings

LENGTH, HELDOUT_TOKENS, CALIBRATION_TOKENS = 1_024, 16_384, 16_384
KINDS = ("recall", "add", "chain", "sort", "edit")
PROBLEMS, MAX_NEW_TOKENS, PROBLEM_SEED, HELDOUT_SEED = 24, 192, 9, 17
SFT = "sft_merge"
IMPORTANCE = "importance"


class Bench:
    """The shipped teacher, and the folders that results and half-done work lie in."""

    def __init__(self, results: Path, work: Path) -> None:
        torch.set_num_threads(1)
        self.results, self.work = results, work
        self.teacher = hz.load_teacher("shipped", device="cpu")
        self.heldout = TaskRows(
            self.teacher.tokenizer,
            sequence_length=LENGTH,
            seed=HELDOUT_SEED,
            split="heldout",
        )

    def rows(self, seed: int, style: Any = "traces") -> TaskRows:
        """Return the training rows of a seed."""
        return TaskRows(self.teacher.tokenizer, sequence_length=LENGTH, seed=seed, style=style)

    def path(self, name: str, seed: int) -> Path:
        """Return where the result of an arm lies."""
        return self.results / f"{name}-{seed}.json"

    def once(self, name: str, seed: int) -> dict[str, Any] | None:
        """Run what is not there yet; None where another process is at it."""
        path = self.path(name, seed)
        asked = ARMS[name].sha256() if name in ARMS else None
        with _alone(self.work / f"{name}-{seed}.lock") as mine:
            if not mine:
                return None
            if path.exists() and read_json(path).get("sha256") == asked:
                found: dict[str, Any] = read_json(path)
                return found
            started = time.process_time()
            made = self._make(name, seed)
            made |= {
                "name": name,
                "seed": seed,
                "sha256": asked,
                "processor_seconds": round(time.process_time() - started, 1),
                "versions": describe_versions(),
            }
            write_json(path, made)
            kept: dict[str, Any] = read_json(path)
            return kept

    def _make(self, name: str, seed: int) -> dict[str, Any]:
        if name == IMPORTANCE:
            return self._rank(seed)
        if name == SFT:
            return self._tune_and_merge(seed)
        return self._run(name, ARMS[name], seed)

    def _run(self, name: str, arm: Arm, seed: int) -> dict[str, Any]:
        rows = self.rows(seed, arm.style)
        ranking = self._ranking(arm, seed)
        model = self.teacher
        parts = []
        first_row = 0
        for stage, count in enumerate(arm.stages):
            layers = ranking[count] if isinstance(ranking, dict) else ranking[:count]
            model = self._convert(model, arm, layers, rows, seed)
            folder = self.work / f"{name}-{seed}" / str(stage)
            fitted = self._distil(model, arm, rows, seed, first_row, folder)
            first_row += fitted.rows
            parts.append(
                {
                    "layers": sorted(layers),
                    "tokens": fitted.tokens,
                    "trainable": fitted.trainable,
                    "reverse_kl_before": (fitted.heldout_before or {})["reverse_kl"],
                    "reverse_kl": (fitted.heldout or {})["reverse_kl"],
                }
            )
        if name == "base":
            model.save(self.work / f"base-{seed}" / "model")
        return {
            "arm": arm.to_json(),
            "layout": str(model.layout),
            "stages": parts,
            "tokens": sum(part["tokens"] for part in parts),
            "reverse_kl": parts[-1]["reverse_kl"],
            **self._score(model),
        }

    def _convert(
        self, model: Model, arm: Arm, layers: list[int], rows: TaskRows, seed: int
    ) -> Model:
        calibration = make_calibration(rows, CALIBRATION_TOKENS) if arm.calibrated else None
        network = convert_fresh(
            model.network,
            model.layout.convert(layers, to=arm.mixer),
            FreshSettings(init=arm.init, options=dict(arm.options), seed=seed),
            source=self.teacher.network,
            calibration=calibration,
        )
        return Model(f"h{len(layers)}", network, model.tokenizer)

    def _distil(
        self, model: Model, arm: Arm, rows: TaskRows, seed: int, first_row: int, folder: Path
    ) -> FitResult:
        training = make_training(arm.tokens // len(arm.stages), seed, arm.train, first_row)
        how = distill.DistillSettings(
            training=training, loss=dict(arm.loss), heldout_tokens=HELDOUT_TOKENS
        )
        return distill.run(model, self.teacher, rows, how, folder, heldout=self.heldout)

    def _ranking(self, arm: Arm, seed: int) -> list[int] | dict[int, list[int]]:
        """Return layers, the first to convert first; for `uniform` those of each count."""
        num = self.teacher.layout.num_layers
        if arm.place == "uniform":
            return {n: [int((i + 0.5) * num / n) for i in range(n)] for n in range(1, num + 1)}
        found = self.once(IMPORTANCE, seed)
        while found is None:
            time.sleep(1)
            found = self.once(IMPORTANCE, seed)
        ranking: list[int] = found["rankings"][arm.place]
        return ranking

    def _rank(self, seed: int) -> dict[str, Any]:
        left_out = leave_one_out(self.teacher, self.heldout, LeaveOneOutSettings(tokens=8_192))
        training = make_training(PROBE_STEPS * PROBE_TOKENS, seed, ("mixer",))
        how = ReplaceOneSettings(
            mixer="mamba1",
            fresh=FreshSettings(options=dict(Arm().options), seed=seed),
            tokens=4_096,
            steps=PROBE_STEPS,
            training=training,
        )
        replaced = replace_one(self.teacher, self.teacher, self.rows(seed), self.heldout, how)
        return {
            "leave_one_out": left_out.to_json(),
            "replace_one": replaced.to_json(),
            "rankings": {
                "leave_one_out": order(left_out),
                "replace_one": order(replaced),
                "replace_one_at_0": order(replaced, before=True),
            },
            "rank_correlation": replaced.rank_correlation(),
        }

    def _tune_and_merge(self, seed: int) -> dict[str, Any]:
        """Fine-tune the model of `base`, and score mixtures of both; distil it further beside."""
        start = self._base(seed)
        rows, first_row = self.rows(seed), ARMS["base"].tokens // LENGTH
        tuned, further = (Model(n, self._base(seed).network, start.tokenizer) for n in ("sft", "d"))
        training = make_training(SFT_TOKENS, seed, ("all",), first_row)
        sft.run(tuned, rows, sft.SftSettings(training=training), self.work / f"sft-{seed}")
        how = distill.DistillSettings(training=training, loss=dict(ARMS["base"].loss))
        distill.run(further, self.teacher, rows, how, self.work / f"further-{seed}")
        points = []
        for weight in MERGE_WEIGHTS:
            mixed = merge.run([tuned, start], merge.MergeSettings(weights=(weight, 1 - weight)))
            points.append({"weight": weight, **self._measure(mixed), **self._score(mixed)})
        longer = {**self._measure(further), **self._score(further)}
        return {"tokens": SFT_TOKENS, "points": points, "further": longer}

    def _base(self, seed: int) -> Model:
        folder = self.work / f"base-{seed}" / "model"
        if not folder.exists():
            self.path("base", seed).unlink(missing_ok=True)
            while self.once("base", seed) is None:
                time.sleep(1)
        return load(folder, name="base")

    def _measure(self, model: Model) -> dict[str, Any]:
        found = measure(
            model.network, Distillation(self.teacher.network), self.heldout, tokens=HELDOUT_TOKENS
        )
        return {"reverse_kl": found["reverse_kl"].value}

    def _score(self, model: Model) -> dict[str, Any]:
        asked = problems(KINDS, num_per_kind=PROBLEMS, seed=PROBLEM_SEED)
        answers = answer(
            model.network, self.teacher.tokenizer, asked, max_new_tokens=MAX_NEW_TOKENS, batch=60
        )
        kinds, overall = score(answers)
        return {
            "accuracy": overall.accuracy,
            "standard_error": overall.standard_error,
            "log_likelihood": overall.log_likelihood,
            "kinds": {kind: one.accuracy for kind, one in kinds.items()},
            "right": "".join("01"[one.right] for one in answers),
        }


def make_training(
    tokens: int, seed: int, train: tuple[str, ...] = ("all",), first_row: int = 0
) -> FitSettings:
    """Return how all arms are trained."""
    return FitSettings(
        tokens=tokens,
        tokens_per_step=LENGTH,
        rows_per_microbatch=1,
        optimizer=OptimizerSettings(lr=1e-3, weight_decay=0.0),
        schedule=ScheduleSettings(name="wsd", warmup=0.05, decay=0.7),
        train=train,
        first_row=first_row,
        seed=seed,
        checkpoint_every=32 * LENGTH,
    )


def order(importance: Importance, *, before: bool = False) -> list[int]:
    """Return all layers, the least important first."""
    entries = importance.scores
    if before:
        return [one.layer for one in sorted(entries, key=lambda one: one.score_before or 0.0)]
    return [one.layer for one in importance.ranked()]


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with this process; False where another one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    gc.collect()
