"""How near six converted layers of the shipped teacher come to it in a short distillation.

    python benchmarks/recovery.py --seed 17
    python benchmarks/recovery.py --seed 17 --start library
    python benchmarks/recovery.py --seed 17 --mixer mamba1 --options '{"repeat": "state"}'

Prints the reverse KL on held-out traces before and after, and the accuracy of generated answers.
"""

import argparse
import json
import math

import torch

from hybridize.evaluation.answers import answer, problems
from hybridize.evaluation.scores import score
from hybridize.models import HybridForCausalLM
from hybridize.models.mixers.mamba2 import Mamba2
from hybridize.models.model import load
from hybridize.pipeline.translate import make_calibration
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.data import TaskRows
from hybridize.training.loop import fit
from hybridize.training.objectives import Distillation
from hybridize.training.settings import FitSettings, Heldout, OptimizerSettings, ScheduleSettings

LAYERS = (4, 5, 7, 8, 9, 10)
KINDS = ("recall", "add", "chain", "sort", "edit")


def start_as_library(student: HybridForCausalLM, seed: int) -> None:
    """Draw decays and steps as Mamba-2 does: -A from 1 to 16, dt from 0.001 to 0.1 in its log."""
    generator = torch.Generator().manual_seed(seed)
    for mixer in student.modules():
        if isinstance(mixer, Mamba2):
            rates_H, steps_H = torch.rand(2, mixer.num_heads, generator=generator)
            steps_H = torch.exp(math.log(1e-3) + steps_H * math.log(100))
            with torch.no_grad():
                mixer.A_log.copy_((1 + 15 * rates_H).log())
                mixer.dt_bias.copy_(steps_H.expm1().log())


def main() -> None:
    """Convert, distil, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixer", default="mamba2")
    parser.add_argument("--options", type=json.loads, default={}, help="of the mixer, as JSON")
    parser.add_argument("--start", choices=("slow", "library"), default="slow")
    parser.add_argument("--calibrate", type=int, default=0, help="tokens; 0 leaves it out")
    parser.add_argument("--loss", type=json.loads, default={"reverse_kl": 1, "cross_entropy": 1})
    parser.add_argument("--tokens", type=int, default=164_000)
    parser.add_argument("--problems", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args()

    teacher = load("shipped")
    rows = TaskRows(teacher.tokenizer, sequence_length=1024, seed=given.seed)
    heldout = TaskRows(teacher.tokenizer, sequence_length=1024, seed=17, split="heldout")
    student = convert_fresh(
        teacher.network,
        teacher.layout.convert(LAYERS, to=given.mixer),
        FreshSettings(options=given.options, seed=17),
        source=teacher.network,
        calibration=make_calibration(rows, given.calibrate) if given.calibrate else None,
    )
    if given.start == "library":
        start_as_library(student, given.seed)
    settings = FitSettings(
        tokens=given.tokens,
        tokens_per_step=2048,
        rows_per_microbatch=2,
        optimizer=OptimizerSettings(name="adamw", lr=1e-3, weight_decay=0.0),
        schedule=ScheduleSettings(name="wsd", warmup=0.05, decay=0.7),
    )
    measured = Heldout(source=heldout, tokens=8192, objective=Distillation(teacher.network))
    fitted = fit(
        student, Distillation(teacher.network, given.loss), rows, settings, heldout=measured
    )
    asked = problems(KINDS, num_per_kind=given.problems, seed=9)
    kinds, overall = score(answer(student, teacher.tokenizer, asked, max_new_tokens=192, batch=100))
    before, after = fitted.heldout_before, fitted.heldout
    assert before is not None and after is not None
    print(f"reverse KL {before['reverse_kl']:.3f} -> {after['reverse_kl']:.3f} nats a token;")
    print(f"accuracy {overall.accuracy:.3f}", {k: round(v.accuracy, 2) for k, v in kinds.items()})


if __name__ == "__main__":
    main()
