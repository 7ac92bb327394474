"""What aligning mixers first is worth: held-out reverse KL by tokens, with and without it.

    OMP_NUM_THREADS=1 python benchmarks/align.py SEED >> benchmarks/tables/align.jsonl

The shipped teacher, layers 4, 5, 7, 8, 9, 10 to mamba2 at once, distilled (reverse KL 1 + cross
entropy 1, AdamW 1e-3, 2,048 tokens a step, the last 70 % decaying) after three starts. Seconds are
those of the processor, one thread.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import hybridize as hz
from hybridize.models.model import Model
from hybridize.pipeline.translate import make_calibration
from hybridize.stages import align, distill
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitSettings

LAYERS = (4, 5, 7, 8, 9, 10)
TOKENS, ALIGNED_TOKENS, CALIBRATION_TOKENS, HELDOUT_TOKENS = 163_840, 100_352, 16_384, 8_192
EVERY = 20_480


def make_settings(tokens: int, seed: int, grad_clip: float | None) -> FitSettings:
    """Return how both trainings go."""
    return FitSettings(
        tokens=tokens,
        tokens_per_step=2_048,
        rows_per_microbatch=2,
        grad_clip=grad_clip,
        optimizer=OptimizerSettings(lr=1e-3, weight_decay=0.0),
        schedule=ScheduleSettings(name="wsd", warmup=0.02, decay=0.7),
        evaluate_every=EVERY,
        seed=seed,
    )


def main() -> None:
    """Print a line of JSON for the alignment and for each arm."""
    torch.set_num_threads(1)
    seed = int(sys.argv[1])
    teacher = hz.load_teacher("shipped", device="cpu")
    data, heldout = (
        hz.make_tasks(teacher.tokenizer, sequence_length=1024, seed=seed, heldout=side)
        for side in (False, True)
    )
    calibration = make_calibration(data, CALIBRATION_TOKENS)
    layout = teacher.layout.convert(LAYERS, to="mamba2")

    def say(**values: object) -> None:
        print(json.dumps({"seed": seed, **values}), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder, started = Path(scratch), time.process_time()
        how = align.AlignSettings(
            training=make_settings(ALIGNED_TOKENS, seed, None),
            fresh=FreshSettings(seed=seed),
            heldout_tokens=HELDOUT_TOKENS,
        )
        aligned, _ = align.run(teacher, data, how, folder, heldout=heldout, calibration=calibration)
        errors = {entry.layer: (entry.before, entry.after) for entry in aligned.errors}
        say(arm="align", seconds=time.process_time() - started, errors=errors)
        starts = {
            "calibrated": (FreshSettings(seed=seed), TOKENS),
            "aligned": (FreshSettings(init="aligned", seed=seed, aligned=folder), TOKENS),
            "aligned, same total": (
                FreshSettings(init="aligned", seed=seed, aligned=folder),
                TOKENS - ALIGNED_TOKENS,
            ),
        }
        for arm, (fresh, tokens) in starts.items():
            network = convert_fresh(
                teacher.network, layout, fresh, source=teacher.network, calibration=calibration
            )
            started, curve = time.process_time(), []
            fitted = distill.run(
                Model(arm, network, teacher.tokenizer),
                teacher,
                data,
                distill.DistillSettings(
                    training=make_settings(tokens, seed, 1.0),
                    loss={"reverse_kl": 1.0, "cross_entropy": 1.0},
                    heldout_tokens=HELDOUT_TOKENS,
                ),
                heldout=heldout,
                progress=lambda step, curve=curve: (
                    curve.append((step.tokens, step.heldout["reverse_kl"]))
                    if step.heldout
                    else None
                ),
            )
            before = (fitted.heldout_before or {})["reverse_kl"]
            say(arm=arm, seconds=time.process_time() - started, before=before, curve=curve)


if __name__ == "__main__":
    main()
