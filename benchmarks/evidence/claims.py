"""The claims of Apriel-H1 and its questions left open, each with the arms that decide it."""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["accuracy", "reverse_kl"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one arm is better than another."""

    name: str
    words: str
    better: str
    """Arm of which it is claimed."""
    worse: str
    metric: Metric = "reverse_kl"
    """What decides: the divergence from the teacher, or, where that would favour a side, the
    accuracy of generated answers."""
    of_paper: bool = True
    """Whether Apriel-H1 says so; else it is a question that the issue left open."""
    guess: str = ""
    """Why it does not hold, shown where it does not."""


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="init",
        words="Weights from attention beat random ones.",
        better="base",
        worse="random_init",
    ),
    Claim(
        name="staged",
        words="Three stages beat converting all at once, with the same tokens.",
        better="staged",
        worse="base",
    ),
    Claim(
        name="forward_kl",
        words="Reverse KL beats forward KL.",
        better="reverse_kl",
        worse="forward_kl",
        metric="accuracy",
    ),
    Claim(
        name="js",
        words="Reverse KL beats Jensen-Shannon.",
        better="reverse_kl",
        worse="js",
        metric="accuracy",
        of_paper=False,
    ),
    Claim(
        name="both_kl",
        words="Reverse KL alone beats half reverse, half forward KL.",
        better="reverse_kl",
        worse="both_kl",
        metric="accuracy",
        of_paper=False,
    ),
    Claim(
        name="pure",
        words="Reverse KL alone beats reverse KL with cross entropy.",
        better="reverse_kl",
        worse="base",
        metric="accuracy",
    ),
    Claim(
        name="teacher",
        words="Reverse KL with cross entropy beats cross entropy, which needs no teacher.",
        better="base",
        worse="cross_entropy",
        metric="accuracy",
        of_paper=False,
    ),
    Claim(
        name="traces",
        words="Reasoning traces beat plain text.",
        better="base",
        worse="plain_text",
    ),
    Claim(
        name="placement",
        words="Layers chosen by leave-one-out beat evenly spread ones.",
        better="base",
        worse="uniform",
    ),
    Claim(
        name="probes",
        words="Layers chosen by short distillation (MMR) beat those by leave-one-out.",
        better="replace_one",
        worse="base",
    ),
    Claim(
        name="probe_steps",
        words="MMR after its short distillation chooses better than before it.",
        better="replace_one",
        worse="replace_one_at_0",
    ),
    Claim(
        name="mamba2",
        words="Mamba-2 beats Mamba-1 of Apriel-H1.",
        better="mamba2",
        worse="base",
        of_paper=False,
    ),
    Claim(
        name="gated_delta",
        words="Gated DeltaNet beats Mamba-1 of Apriel-H1.",
        better="gated_delta",
        worse="base",
        of_paper=False,
    ),
    Claim(
        name="freezing",
        words="Training everything beats training the new mixers only.",
        better="base",
        worse="mixers_only",
    ),
    Claim(
        name="repeat",
        words="Heads aligned beat groups of 16 repeated in place.",
        better="aligned_heads",
        worse="base",
        of_paper=False,
    ),
    Claim(
        name="dt_bias",
        words="The step's bias once beats the same twice.",
        better="dt_bias_once",
        worse="base",
        of_paper=False,
    ),
    Claim(
        name="calibration",
        words="Gates and output projections fitted in closed form beat the published start.",
        better="calibrated",
        worse="base",
        of_paper=False,
    ),
)

DECAY = {2: "convert_2", 4: "convert_4", 6: "convert_6", 7: "base", 8: "convert_8"}
"""Converted layers -> arm: the claim that quality falls in a near-straight line."""
FARTHEST = {**DECAY, 10: "convert_10"}
"""The same with most layers converted, for which these budgets are too short."""
