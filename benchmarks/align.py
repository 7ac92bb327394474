"""What aligning mixers first is worth: tokens of distillation to a reverse KL, with and without it.

    OMP_NUM_THREADS=1 python benchmarks/align.py run SEED --start aligned >> align.jsonl
    OMP_NUM_THREADS=1 python benchmarks/align.py run SEED --start calibrated >> align.jsonl
    python benchmarks/align.py table align.jsonl
    OMP_NUM_THREADS=1 python benchmarks/align.py rank SEED

The shipped teacher, layers 1, 4, 5, 7, 8, 9, 10 of 12 to mamba2 at once, distilled (reverse KL 1 +
cross entropy 1, AdamW 1e-3, 1,024 tokens a step, the last 70 % decaying), each budget a run of its
own, because the gain comes while the rate falls. Alignment trains the mixers of all 12 layers.
`rank` tells how well replace_one ranks the layers of the teacher, by the rank correlation with
replacements that are trained longer, 48 steps each unless told.
Seconds are those of the processor, one thread.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import correlation, mean
from typing import Any

import torch

import hybridize as hz
from hybridize.core.importance import Importance
from hybridize.evaluation.answers import answer, problems
from hybridize.evaluation.scores import score
from hybridize.models.model import Model
from hybridize.pipeline.translate import make_calibration
from hybridize.stages import align
from hybridize.stages.importance import ReplaceOneSettings, replace_one
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.data import TokenSource
from hybridize.training.loop import fit
from hybridize.training.objectives import Distillation
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitSettings, Heldout

LAYERS = (1, 4, 5, 7, 8, 9, 10)
KINDS = ("recall", "add", "chain", "sort", "edit")
CALIBRATION_TOKENS, HELDOUT_TOKENS = 16_384, 16_384
LEVELS = (0.5,)
"""Reverse KL in nats a token, to which the tokens are told: between the budgets of both starts."""


def make_settings(tokens: int, lr: float, seed: int, grad_clip: float | None) -> FitSettings:
    """Return how both trainings go."""
    return FitSettings(
        tokens=tokens,
        tokens_per_step=1_024,
        rows_per_microbatch=1,
        grad_clip=grad_clip,
        optimizer=OptimizerSettings(lr=lr, weight_decay=0.0),
        schedule=ScheduleSettings(name="wsd", warmup=0.02, decay=0.7),
        seed=seed,
    )


def say(**values: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(values), flush=True)


def align_all(
    teacher: Model, data: TokenSource, heldout: TokenSource, folder: Path, given: argparse.Namespace
) -> FreshSettings:
    """Align the mixers of all layers into a folder; return how students start from them."""
    started = time.process_time()
    how = align.AlignSettings(
        training=make_settings(given.align_tokens, given.align_lr, given.seed, None),
        fresh=FreshSettings(seed=given.seed),
        heldout_tokens=4_096,
    )
    calibration = make_calibration(data, CALIBRATION_TOKENS)
    made, _ = align.run(teacher, data, how, folder, heldout=heldout, calibration=calibration)
    say(
        seed=given.seed,
        arm="align",
        tokens=given.align_tokens,
        lr=given.align_lr,
        seconds=time.process_time() - started,
        errors={entry.layer: (entry.before, entry.after) for entry in made.errors},
    )
    return FreshSettings(init="aligned", seed=given.seed, aligned=folder)


def open_inputs(seed: int) -> tuple[Model, TokenSource, TokenSource]:
    """Return the teacher, training rows of a seed, and held-out rows that are always the same."""
    torch.set_num_threads(1)
    teacher = hz.load_teacher("shipped", device="cpu")
    data = hz.make_tasks(teacher.tokenizer, sequence_length=1024, seed=seed)
    heldout = hz.make_tasks(teacher.tokenizer, sequence_length=1024, seed=17, heldout=True)
    return teacher, data, heldout


def run(given: argparse.Namespace) -> None:
    """Distil once for each budget from one start; print a line for each."""
    teacher, data, heldout = open_inputs(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        fresh = FreshSettings(seed=given.seed)
        if given.start == "aligned":
            fresh = align_all(teacher, data, heldout, Path(scratch), given)
        for tokens in given.budgets:
            student = convert_fresh(
                teacher.network,
                teacher.layout.convert(LAYERS, to="mamba2"),
                fresh,
                source=teacher.network,
                calibration=make_calibration(data, CALIBRATION_TOKENS),
            )
            started, kl = time.process_time(), Distillation(teacher.network)
            fitted = fit(
                student,
                Distillation(teacher.network, {"reverse_kl": 1.0, "cross_entropy": 1.0}),
                data,
                make_settings(tokens, 1e-3, given.seed, 1.0),
                heldout=Heldout(source=heldout, tokens=HELDOUT_TOKENS, objective=kl),
            )
            seconds = time.process_time() - started
            asked = problems(KINDS, num_per_kind=given.problems, seed=9)
            answers = answer(student, teacher.tokenizer, asked, max_new_tokens=192, batch=100)
            say(
                seed=given.seed,
                arm=given.start,
                tokens=tokens,
                before=(fitted.heldout_before or {})["reverse_kl"],
                reverse_kl=(fitted.heldout or {})["reverse_kl"],
                accuracy=score(answers)[1].accuracy,
                seconds=seconds,
            )


def rank(given: argparse.Namespace) -> None:
    """Measure importance by replace_one from both starts; print how well each ranks."""
    teacher, data, heldout = open_inputs(given.seed)
    calibration = make_calibration(data, CALIBRATION_TOKENS)

    def measure(fresh: FreshSettings, steps: int) -> Importance:
        training = replace(make_settings(steps * 1_024, 1e-3, given.seed, 1.0), train=("mixer",))
        how = ReplaceOneSettings(fresh=fresh, tokens=4_096, steps=steps, training=training)
        return replace_one(teacher, teacher, data, heldout, how, calibration=calibration)

    with tempfile.TemporaryDirectory() as scratch:
        calibrated = FreshSettings(seed=given.seed)
        aligned = align_all(teacher, data, heldout, Path(scratch), given)
        wanted = measure(calibrated, given.wanted_steps)
        scores = [entry.score for entry in wanted.scores]
        say(seed=given.seed, arm="wanted", steps=given.wanted_steps, scores=scores)
        for arm, found in (
            ("calibrated", measure(calibrated, 3)),
            ("aligned", measure(aligned, 3)),
        ):
            for steps, name in ((0, "score_before"), (3, "score")):
                scores = [getattr(entry, name) for entry in found.scores]
                same = correlate(scores, [entry.score for entry in wanted.scores])
                say(seed=given.seed, arm=arm, steps=steps, spearman=same, scores=scores)


def correlate(one: list[float], other: list[float]) -> float:
    """Return the correlation of ranks (Spearman) of two lists without ties."""
    ranks = ([sorted(values).index(value) for value in values] for values in (one, other))
    return correlation(*ranks)


def find_tokens(points: list[tuple[int, float]], level: float) -> float | None:
    """Return the budget at which a reverse KL is reached, between two on a doubly log scale."""
    points = sorted(points)
    for (before, high), (after, low) in pairwise(points):
        if high >= level >= low:
            share = math.log(high / level) / math.log(high / low)
            return math.exp(math.log(before) + share * math.log(after / before))
    return None


def table(given: argparse.Namespace) -> None:
    """Print what came out for each start and budget, and the tokens to each level."""
    lines = [json.loads(line) for line in given.file.read_text().splitlines()]
    runs = [line for line in lines if line["arm"] != "align"]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    curves: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
    for line in runs:
        groups[line["arm"], line["tokens"]].append(line)
        curves[line["arm"], line["seed"]].append((line["tokens"], line["reverse_kl"]))
    for (arm, tokens), found in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        found.sort(key=lambda line: line["seed"])
        cells = (f"{line['reverse_kl']:.3f} ({line['accuracy']:.2f})" for line in found)
        nats, right = (mean(line[key] for line in found) for key in ("reverse_kl", "accuracy"))
        print(f"| {tokens:,} | {arm} | {', '.join(cells)} | {nats:.3f} ({right:.2f}) |")
    for level in LEVELS:
        for (arm, seed), points in sorted(curves.items()):
            tokens = find_tokens(points, level)
            print(f"{level} {arm} seed {seed}: {'-' if tokens is None else f'{tokens:,.0f}'}")


def main() -> None:
    """Run one start of one seed, or print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("seed", type=int)
    one.add_argument("--start", choices=("aligned", "calibrated"), default="aligned")
    one.add_argument("--budgets", type=int, nargs="+", default=[81_920, 163_840])
    one.add_argument("--align-tokens", type=int, default=100_352)
    one.add_argument("--align-lr", type=float, default=5e-3)
    one.add_argument("--problems", type=int, default=20, help="of each kind")
    one.set_defaults(do=run)
    one = commands.add_parser("rank")
    one.add_argument("seed", type=int)
    one.add_argument("--align-tokens", type=int, default=100_352)
    one.add_argument("--align-lr", type=float, default=5e-3)
    one.add_argument("--wanted-steps", type=int, default=48, help="of the ranking to compare with")
    one.set_defaults(do=rank)
    other = commands.add_parser("table")
    other.add_argument("file", type=Path)
    other.set_defaults(do=table)
    given = parser.parse_args(sys.argv[1:])
    given.do(given)


if __name__ == "__main__":
    main()
