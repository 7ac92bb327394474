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
    """Whether Apriel-H1 says so; else it is a question of our own."""
    guess: str = ""
    """Why it does not hold, shown where it does not."""


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="init",
        words="Weights from attention beat random ones.",
        better="base",
        worse="random_init",
        guess=(
            "At 1e-3 these tokens move every weight far from any start; at the paper's 5e-6 a "
            "start is most of what there is."
        ),
    ),
    Claim(
        name="staged",
        words="Three stages beat converting all at once, with the same tokens.",
        better="staged",
        worse="base",
        guess=(
            "The last layers to go get a third of the tokens here, and one of them is the "
            "layer this teacher misses most; the paper's later stages each had billions."
        ),
    ),
    Claim(
        name="forward_kl",
        words="Reverse KL beats forward KL.",
        better="reverse_kl",
        worse="forward_kl",
        metric="accuracy",
        guess=(
            "Just after converting, the student gives the right word next to nothing, and the "
            "gradient of reverse KL is weighted by what the student gives. The paper trains "
            "until that is long past."
        ),
    ),
    Claim(
        name="staged_long",
        words="Three stages beat converting all at once with three times the tokens.",
        better="staged_long",
        worse="base_long",
        guess=(
            "Each stage now has the tokens that `base` has in all, and still the seventh layer is "
            "what costs: a third of them is left for it. Budgets that grow with the stages were "
            "not tried here."
        ),
    ),
    Claim(
        name="forward_kl_long",
        words="Reverse KL beats forward KL with three times the tokens.",
        better="reverse_kl_long",
        worse="forward_kl_long",
        metric="accuracy",
        guess=(
            "The gap grows: forward KL is ahead even in reverse KL. Nothing is forgotten here "
            "that it would have to cover, as the teacher is nearly certain of most tokens."
        ),
    ),
    Claim(
        name="pure_long",
        words="Reverse KL alone beats the mixture with three times the tokens.",
        better="reverse_kl_long",
        worse="base_long",
        metric="accuracy",
        guess=("As with fewer tokens, and now beyond chance."),
    ),
    Claim(
        name="js",
        words="Reverse KL beats Jensen-Shannon.",
        better="reverse_kl",
        worse="js",
        metric="accuracy",
        of_paper=False,
        guess=("Its gradient is weighted by the student's own probability too."),
    ),
    Claim(
        name="both_kl",
        words="Reverse KL alone beats half reverse, half forward KL.",
        better="reverse_kl",
        worse="both_kl",
        metric="accuracy",
        of_paper=False,
        guess=("As for forward KL: the half of it teaches where reverse KL is silent."),
    ),
    Claim(
        name="pure",
        words="Reverse KL alone beats reverse KL with cross entropy.",
        better="reverse_kl",
        worse="base",
        metric="accuracy",
        guess=(
            "As for forward KL; and the text of these tasks is right, so that cross entropy "
            "never pulls away from the teacher."
        ),
    ),
    Claim(
        name="teacher",
        words="Reverse KL with cross entropy beats cross entropy, which needs no teacher.",
        better="base",
        worse="cross_entropy",
        metric="accuracy",
        of_paper=False,
        guess=(
            "The text is the teacher's own kind of trace and has one right continuation at "
            "most places: a teacher adds little to it."
        ),
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
        guess=("The first cut is the same in some seeds, and what differs is one layer of seven."),
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
        guess=(
            "This teacher has two key-value heads, whose four groups of 16 channels are few "
            "to confuse."
        ),
    ),
    Claim(
        name="dt_bias",
        words="The step's bias once beats the same twice.",
        better="dt_bias_once",
        worse="base",
        of_paper=False,
        guess=("The bias is trained: twice its value is another start, not another function."),
    ),
    Claim(
        name="calibration",
        words="Gates and output projections fitted in closed form beat the published start.",
        better="calibrated",
        worse="base",
        of_paper=False,
        guess=(
            "It fits gates and outputs, and most of what is missing at this budget is elsewhere."
        ),
    ),
)

DECAY = {2: "convert_2", 4: "convert_4", 6: "convert_6", 7: "base", 8: "convert_8"}
"""Converted layers -> arm: the claim that quality falls in a near-straight line."""
FARTHEST = {**DECAY, 10: "convert_10"}
"""The same with most layers converted, for which these budgets are too short."""
