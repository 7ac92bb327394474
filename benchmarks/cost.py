"""Hold the formulas of `hybridize plan` against published runs; the table is that of docs/cost.md.

python benchmarks/cost.py
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hybridize.core.cost import flops_of
from hybridize.core.machine import GPUS
from hybridize.core.memory import Memory, plan_memory
from hybridize.core.recipe import Recipe, load_recipe
from hybridize.core.shape import ModelShape

APRIEL = {
    "model_type": "mistral",
    "num_hidden_layers": 50,
    "hidden_size": 5120,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 131072,
    "max_position_embeddings": 65536,
    "sliding_window": None,
}
LLAMA_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
WHOLE_LOSS_BYTES = 14
"""A logit of a loss that is not computed in pieces, as in the two runs compared: 2 as it leaves the
head, and 4 each for its float32 copy, its logarithm and its gradient; the teacher's in the place of
the copy where there is a teacher."""
TITAN, FAST_LLM = "torchtitan, benchmarks of December 2024", "Fast-LLM, pull request 388"


@dataclass(frozen=True)
class Point:
    """A published figure and ours."""

    what: str
    source: str
    unit: str
    published: float
    planned: float

    @property
    def deviation(self) -> float:
        """Share by which ours is larger."""
        return self.planned / self.published - 1


def list_points() -> Iterator[Point]:
    """List the published figures with what the formulas of `hybridize.core` give for them."""
    h30 = load_recipe("apriel-h1-15b", ["stages.h30.tokens=37.025632B"])
    assert h30.sft is not None
    tokens = sum(stage.tokens for stage in h30.stages[:3]) + h30.sft.tokens
    yield Point(
        "tokens of H-30-SFT, all told", "Apriel-H1, figure 4", "B tokens", 76.8, tokens / 1e9
    )
    apriel = ModelShape.from_config(APRIEL)
    student, teacher = flops_of(h30, apriel, 30), flops_of(h30, apriel, 0)
    ratio = 3 * student / (3 * student + teacher)
    yield Point("speed with logit KD over without", FAST_LLM, "ratio", 2900 / 3500, ratio)
    logits = WHOLE_LOSS_BYTES * 16384 * apriel.vocab_size
    yield Point("memory that logit KD adds (1)", FAST_LLM, "GB", 77 - 44, logits / 1e9)

    few, many = (llama_memory(gpus, rows=2, length=8192) for gpus in (8, 128))
    saved = (few.total - many.total) / 2**30
    yield Point("memory saved by 128 GPUs over 8", TITAN, "GiB", 82.4 - 67.0, saved)
    yield Point("the same, compiled", TITAN, "GiB", 77.0 - 62.0, saved)
    long = llama_memory(8, rows=1, length=32768)
    whole = long.total - long.loss + WHOLE_LOSS_BYTES * 32768 * LLAMA_8B["vocab_size"]
    yield Point("memory at 32k tokens, recomputed (2)", TITAN, "GiB", 83.9, whole / 2**30)
    llama = ModelShape.from_config(LLAMA_8B)
    speed = 0.568 * GPUS["a100-80gb"][0] / (3 * llama.flops_per_token(context=4096))
    source = "torchtitan, docs/performance.md of 2024"
    yield Point("tokens a second of an A100 at 56.8% MFU (3)", source, "tokens/s", 2904, speed)
    yield Point("states of 7.5B weights on 64 GPUs", "ZeRO, figure 1", "GB", 1.9, 7.5 * 16 / 64)


def llama_memory(gpus: int, *, rows: int, length: int) -> Memory:
    """Estimate the memory of pretraining Llama 3.1 8B with float32 weights and bfloat16 compute."""
    values: dict[str, Any] = {
        "version": 1,
        "teacher": {"model": "llama"},
        "data": {"sequence_length": length},
        "distill": {"dtype": "bfloat16", "tokens_per_step": gpus * rows * length},
        "sft": {"tokens": "1B"},
    }
    recipe = Recipe.from_values(values)
    assert recipe.sft is not None
    return plan_memory(recipe, ModelShape.from_config(LLAMA_8B), recipe.sft, 0, gpus)


def render_table() -> str:
    """Print the comparison in Markdown."""
    lines = ["| figure | published by | published | planned | deviation |", "|---|---|---|---|---|"]
    lines += [
        f"| {point.what} | {point.source} | {point.published:,.4g} {point.unit} | "
        f"{point.planned:,.4g} {point.unit} | {point.deviation:+.1%} |"
        for point in list_points()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(render_table())
