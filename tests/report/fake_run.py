"""A run folder as `hybridize run` would leave it, with made-up but plausible numbers."""

import json
import math
import random
from pathlib import Path

from hybridize.core.artifacts import write_json, write_result, write_text
from hybridize.core.importance import Importance, LayerScore
from hybridize.core.layout import Layout

KINDS = ("recall", "arithmetic", "reverse", "sort", "brackets", "lookup")
STAGES = (
    ("h4", (7, 9, 10, 5), 2_000_000, None),
    ("h7", (3, 8, 4), 3_000_000, "h4"),
)
RECIPE = """# A small run.
version: 1
name: h7
seed: 17
stages:
  - {name: h4, converted: 4, tokens: 2M}
  - {name: h7, converted: 7, tokens: 3M}
"""


def write_run(folder: Path, *, num_layers: int = 12, name: str = "h7", noise_seed: int = 0) -> Path:
    """Write a finished run with two stages, SFT and merge."""
    noise = random.Random(noise_seed)
    write_text(folder / "recipe.yaml", RECIPE.replace("name: h7", f"name: {name}", 1))
    write_text(folder / "recipe.resolved.yaml", RECIPE + f"# made with noise {noise_seed}\n")
    _write_facts(folder, num_layers)
    layouts = _layouts(num_layers)
    _write_importance(folder, layouts, noise)
    write_json(folder / "plan.json", _plan(layouts))
    _write_stages(folder, layouts, noise)
    models = {**layouts, "sft": layouts["h7"], "merge": layouts["h7"]}
    _write_evaluations(folder, models, noise)
    _write_bench(folder, models)
    return folder


def _layouts(num_layers: int) -> dict[str, Layout]:
    layouts = {"teacher": Layout.uniform(num_layers)}
    for name, layers, _, start in STAGES:
        layouts[name] = layouts[start or "teacher"].convert(layers, to="mamba2")
    return layouts


def _write_facts(folder: Path, num_layers: int) -> None:
    teacher = {
        "name": "tiny-teacher", "family": "llama", "num_layers": num_layers,
        "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "ffn_size": 384,
        "vocab_size": 640, "parameters": 2_345_678, "fingerprint": "9f2c51d0a4", "path": "shipped",
        "tied": False, "rope_theta": 10_000.0, "max_positions": 2048, "window": None,
        "window_layers": [], "qkv_bias": False, "o_bias": False, "mlp_bias": False,
        "qk_norm_size": 0,
    }  # fmt: skip
    write_json(folder / "teacher.json", teacher)
    versions = {"hybridize": "0.1.0", "torch": "2.13.0", "python": "3.11.2"}
    environment = {"versions": versions, "device": "cpu", "threads": 2, "seed": 17}
    write_json(folder / "environment.json", {**environment, "command": "hybridize run h7.yaml"})
    nodes = (("importance", 41.2), ("h4", 310.5), ("h7", 455.25), ("sft", 120.0), ("merge", 0.75))
    status = [{"node": node, "state": "done", "seconds": seconds} for node, seconds in nodes]
    write_json(folder / "status.json", {"nodes": status})


def _write_importance(folder: Path, layouts: dict[str, Layout], noise: random.Random) -> None:
    num_layers = layouts["teacher"].num_layers
    scores = tuple(
        LayerScore(
            layer=layer,
            score=2.4 * math.exp(-layer / 1.6) + 0.08 * noise.random() + 0.02,
            standard_error=0.004 + 0.002 * noise.random(),
            tokens=65_536,
            seconds=1.9,
        )
        for layer in range(num_layers)
    )
    common = {"model": "teacher", "layout": str(layouts["teacher"])}
    measured = Importance(method="leave_one_out", metric="kl", scores=scores, **common)
    measured.save(folder / "importance" / "leave_one_out.json")
    left = [layer for layer in range(num_layers) if layer not in layouts["h4"].converted]
    scores = tuple(
        LayerScore(
            layer=layer,
            score=0.01 + 0.3 * noise.random() ** 2,
            score_before=0.4 + 2.0 * noise.random(),
            standard_error=0.003,
            tokens=16_384,
            seconds=12.5,
        )
        for layer in left
    )
    measured = Importance(
        method="replace_one", metric="reverse_kl", scope="attention", mixer="mamba2", steps=100,
        model="h4", layout=str(layouts["h4"]), scores=scores,
    )  # fmt: skip
    measured.save(folder / "importance" / "replace_one-h7.json")


def _plan(layouts: dict[str, Layout]) -> dict:
    stages = [
        {
            "name": name, "converted": len(layouts[name].converted), "tokens": tokens,
            "rank_by": "leave_one_out", "start_from": start, "layers": list(layers),
            "layout": str(layouts[name]),
        }
        for name, layers, tokens, start in STAGES
    ]  # fmt: skip
    return {"stages": stages}


def _write_stages(folder: Path, layouts: dict[str, Layout], noise: random.Random) -> None:
    cumulative = 0
    for index, (name, layers, tokens, _) in enumerate(STAGES, start=1):
        cumulative += tokens
        values = {
            "name": name, "layout": str(layouts[name]),
            "converted": list(layouts[name].converted), "new_layers": sorted(layers),
            "tokens": tokens, "cumulative_tokens": cumulative, "seconds": 150.0 * index,
            "heldout_before": {"reverse_kl": 1.9 + index},
            "heldout": {"reverse_kl": 0.021 * index},
            "parameters": 2_400_000, "trainable": 2_400_000,
        }  # fmt: skip
        _write_training(folder / "stages" / f"{index:02d}-{name}", values, "reverse_kl", noise)
    values = {
        "name": "sft", "layout": str(layouts["h7"]), "converted": list(layouts["h7"].converted),
        "new_layers": [], "tokens": 1_000_000, "cumulative_tokens": cumulative + 1_000_000,
        "seconds": 118.0, "parameters": 2_400_000, "trainable": 2_400_000,
    }  # fmt: skip
    _write_training(folder / "sft", values, "cross_entropy", noise)
    merge = {"models": ["sft", "h7"], "weights": [0.5, 0.5], "layout": str(layouts["h7"])}
    write_result(folder / "merge", "merge", settings={}, inputs={}, values=merge, seconds=0.7)


def _write_training(folder: Path, values: dict, part: str, noise: random.Random) -> None:
    num_steps, tokens = 400, values["tokens"]
    lines = []
    for step in range(1, num_steps + 1):
        loss = 0.02 + 2.5 * math.exp(-step / 18) + 0.25 * math.exp(-step / 140)
        loss *= 1 + 0.15 * noise.random()
        line = {
            "step": step, "tokens": tokens * step // num_steps, "loss": loss,
            "parts": {part: loss}, "lr": 1e-3, "grad_norm": 0.8,
            "tokens_per_second": 9000.0, "seconds": 0.4 * step,
        }  # fmt: skip
        if step % 100 == 0:
            line["heldout"] = {part: loss * 1.08}
        lines.append(json.dumps(line))
    write_text(folder / "metrics.jsonl", "\n".join(lines) + "\n")
    name = values["name"]
    seconds = values["seconds"]
    write_result(folder, name, settings={}, inputs={}, values=values, seconds=seconds)


def _write_evaluations(folder: Path, models: dict[str, Layout], noise: random.Random) -> None:
    tokens = {"h4": 2_000_000, "h7": 5_000_000, "sft": 6_000_000, "merge": 6_000_000}
    quality = {"teacher": 0.97, "h4": 0.95, "h7": 0.89, "sft": 0.93, "merge": 0.945}
    for name, layout in models.items():
        kinds = {}
        for position, kind in enumerate(KINDS):
            share = min(0.995, quality[name] - 0.02 * position * (name != "teacher"))
            share = round(200 * (share - 0.02 * noise.random())) / 200
            kinds[kind] = _score(share, 200, -1.1 + quality[name] - 0.05 * noise.random())
        mean = sum(found["accuracy"] for found in kinds.values()) / len(kinds)
        overall = _score(mean, 1200, -0.6 + 0.5 * quality[name] - 0.2 * (name == "sft"))
        evaluation = {
            "model": name, "suite": "tasks", "layout": str(layout), "tokens": tokens.get(name, 0),
            "kinds": kinds, "overall": overall, "seed": 17, "seconds": 88.0,
            "sampling": {"temperature": 0, "max_new_tokens": 96},
        }  # fmt: skip
        write_json(folder / "eval" / f"{name}.json", evaluation)


def _score(accuracy: float, num_problems: int, log_likelihood: float) -> dict:
    error = math.sqrt(max(accuracy * (1 - accuracy), 1e-4) / num_problems)
    return {
        "accuracy": accuracy, "standard_error": error, "num_problems": num_problems,
        "log_likelihood": log_likelihood, "mean_tokens": 41.5, "finished": 0.99,
    }  # fmt: skip


def _write_bench(folder: Path, models: dict[str, Layout]) -> None:
    entries = []
    for name, layout in models.items():
        kept = layout.num_layers - len(layout.converted)
        rows = []
        for context in (64, 256, 1024, 4096):
            step = layout.num_layers * 0.9e-3 + kept * context * 4e-7 + 2e-3
            step += 3e-4 * len(layout.converted)
            rows.append(
                {
                    "context_tokens": context,
                    "prefill_tokens_per_second": 2e4 / (1 + context / 3e3),
                    "decode_tokens_per_second": 4 / step, "seconds_per_token": step,
                    "cache_bytes": 4 * (kept * context * 512 + len(layout.converted) * 40_000),
                }
            )  # fmt: skip
        entries.append({"model": name, "layout": str(layout), "rows": rows})
    bench = {"device": "cpu (2 cores)", "threads": 2, "batch": 4, "output_tokens": 64}
    write_json(folder / "bench" / "bench.json", {**bench, "dtype": "float32", "models": entries})
