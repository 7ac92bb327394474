"""The arms that decide the claims: each one way to make a student of the shipped teacher."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hybridize.core.artifacts import hash_json

APRIEL_H1 = {"repeat": "state", "dt_bias": "twice"}
"""Options of mamba1 with which the published weights were trained."""

Placement = Literal["leave_one_out", "replace_one", "replace_one_at_0", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make a student; what is left out is as in the arm `base`."""

    place: Placement = "leave_one_out"
    """What chooses the layers: `replace_one_at_0` ranks before the short distillation."""
    stages: tuple[int, ...] = (7,)
    """Converted layers after each stage; the stages share the tokens alike."""
    mixer: str = "mamba1"
    options: Mapping[str, Any] = field(default_factory=lambda: dict(APRIEL_H1))
    init: Literal["from_attention", "random"] = "from_attention"
    calibrated: bool = False
    """Whether gates and output projections are fitted in closed form; no part of Apriel-H1."""
    loss: Mapping[str, float] = field(
        default_factory=lambda: {"reverse_kl": 1.0, "cross_entropy": 1.0}
    )
    style: Literal["traces", "text"] = "traces"
    """What is trained on; all are measured on held-out traces."""
    train: tuple[str, ...] = ("all",)
    tokens: int = 122_880

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def sha256(self) -> str:
        """Return what tells results of this arm from those of an arm that was since changed."""
        return hash_json(self.to_json())


BASE = Arm()

ARMS: dict[str, Arm] = {
    "base": BASE,
    "random_init": replace(BASE, init="random"),
    "staged": replace(BASE, stages=(3, 5, 7)),
    "reverse_kl": replace(BASE, loss={"reverse_kl": 1.0}),
    "forward_kl": replace(BASE, loss={"forward_kl": 1.0}),
    "js": replace(BASE, loss={"js": 1.0}),
    "both_kl": replace(BASE, loss={"reverse_kl": 0.5, "forward_kl": 0.5}),
    "cross_entropy": replace(BASE, loss={"cross_entropy": 1.0}),
    "plain_text": replace(BASE, style="text"),
    "uniform": replace(BASE, place="uniform"),
    "replace_one": replace(BASE, place="replace_one"),
    "replace_one_at_0": replace(BASE, place="replace_one_at_0"),
    "convert_2": replace(BASE, stages=(2,)),
    "convert_4": replace(BASE, stages=(4,)),
    "convert_6": replace(BASE, stages=(6,)),
    "convert_8": replace(BASE, stages=(8,)),
    "convert_10": replace(BASE, stages=(10,)),
    "mamba2": replace(BASE, mixer="mamba2", options={}),
    "gated_delta": replace(BASE, mixer="gated_delta", options={}),
    "mixers_only": replace(BASE, train=("mixer",)),
    "aligned_heads": replace(BASE, options={**APRIEL_H1, "repeat": "aligned"}),
    "dt_bias_once": replace(BASE, options={**APRIEL_H1, "dt_bias": "once"}),
    "calibrated": replace(BASE, calibrated=True),
}

LONG = ("base", "staged", "reverse_kl", "forward_kl")
"""Arms of claims that may turn with the budget: they are run with three times the tokens too."""
ARMS |= {f"{name}_long": replace(ARMS[name], tokens=3 * BASE.tokens) for name in LONG}

SFT_TOKENS = 61_440
MERGE_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Share of the fine-tuned model in the merge; the rest is the model it started from."""
PROBE_STEPS, PROBE_TOKENS = 20, 1_024
"""Updates of a probe of replace_one, and the tokens of each."""
