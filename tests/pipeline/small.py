"""A recipe with every stop of the street, small enough to run in seconds."""

import time
from pathlib import Path

import torch

from hybridize.core.artifacts import hash_file, read_json
from hybridize.pipeline import run_recipe
from hybridize.pipeline.observer import Observer

RECIPE = """\
version: 1
name: small
seed: 3
teacher: {model: TEACHER}
data:
  train: {kind: tasks, mix: {sort: 1, add: 1}}
  sequence_length: 128
mixer: {kind: mamba2}
importance:
  - {method: leave_one_out, metric: kl, scope: attention, tokens: 512}
  - {method: replace_one, tokens: 256, steps: 2, tokens_per_step: 256, lr: 1e-3}
distill:
  optimizer: {name: adamw, lr: 1e-3}
  tokens_per_step: 256
  checkpoint_every: 512
stages:
  - {name: h1, converted: 1, tokens: 2048, rank_by: leave_one_out}
  - {name: h2, converted: 2, tokens: 2048, rank_by: replace_one}
sft: {tokens: 1024}
merge: {models: [sft, h2], weights: [1, 3]}
evaluate: {suite: "tests.tiny_tasks:SHORT_KINDS", problems: 2, every_stage: true, max_new_tokens: 4}
bench: {context_tokens: [8, 16], output_tokens: 2, repeats: 1}
report: {format: [html, md]}
"""
NODES = [
    "teacher",
    "importance/leave_one_out",
    "eval/teacher",
    "h1",
    "eval/h1",
    "importance/replace_one-h2",
    "h2",
    "eval/h2",
    "sft",
    "eval/sft",
    "merge",
    "eval/merge",
    "bench",
]
MODELS = ("stages/01-h1", "stages/02-h2", "sft", "merge")


class WriteNews(Observer):
    """Appends a line to a file for each thing it is told, and takes its time over it."""

    def __init__(self, file: Path, pause: float = 0.0) -> None:
        self.file, self.pause = file, pause

    def tell(self, *words: object) -> None:
        with self.file.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")
        time.sleep(self.pause)

    def node_started(self, node):
        self.tell("start", node)

    def node_progressed(self, node, done, total):
        self.tell("piece", node, done, total)

    def node_stepped(self, node, record):
        self.tell("step", node, record.step)

    def node_finished(self, node, seconds, skipped):
        self.tell("skip" if skipped else "done", node)


def write_recipe(path: Path, teacher: Path) -> Path:
    path.write_text(RECIPE.replace("TEACHER", str(teacher)))
    return path


def run(recipe: Path, out: Path, *overrides: str, **options) -> list[str]:
    """Run the recipe; return the nodes that were not skipped."""
    observer = options.pop("observer", None) or WriteNews(out.with_name(f"{out.name}.news"))
    observer.file.unlink(missing_ok=True)
    run_recipe(recipe, out, overrides=overrides, device="cpu", observer=observer, **options)
    return told(observer.file, "done")


def run_paused(recipe: Path, out: Path, news: Path) -> None:
    """Run in a process of its own that may be killed; slow enough to be killed in the middle."""
    torch.set_num_threads(1)
    run_recipe(recipe, out, device="cpu", observer=WriteNews(news, 0.01))


def told(file: Path, what: str) -> list[str]:
    """Return what the news say of one sort: the nodes that are `done`, the `step`s made."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{what} ")]


def hash_weights(out: Path) -> dict[str, str]:
    return {name: hash_file(out / name / "model" / "model.safetensors") for name in MODELS}


def node_states(out: Path) -> dict[str, str]:
    return {node["node"]: node["state"] for node in read_json(out / "status.json")["nodes"]}


def list_files(out: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file, to see what a second run writes."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files
    }
