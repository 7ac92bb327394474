"""Decoding speed and memory in llama-server of a Llama shape with none, 60 and 80 % converted.

    HYBRIDIZE_LLAMA_SERVER=PATH python benchmarks/llama_cpp.py --work /tmp/shapes \
        > benchmarks/tables/llama_cpp.md

The weights are random: speed does not depend on them. A prompt is computed once, its keys, values
and states are saved, and every slot restores them, so that reaching a depth costs one sequence's
prompt; from there each slot decodes on its own, all in one batch. `--unpadded` writes the mixers as
wide as the hidden size, for a build without the check of their width (docs/llama-cpp.md).
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import find_processor, table

from hybridize.core.layout import Layout
from hybridize.core.shapes import RandomShape, find_shape, spread_layout
from hybridize.engines import ServeSettings, serving
from hybridize.engines.base import Command
from hybridize.engines.http import Connection
from hybridize.engines.llama_cpp import LlamaCpp
from hybridize.exports.gguf import FILE, write, write_unpadded
from hybridize.models.random_weights import make_random

MIB = 2**20
SAVED = "state.bin"


class Saving(LlamaCpp):
    """llama-server that saves the cache of a slot in a folder, and keeps no other copies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, settings: ServeSettings) -> Command:
        """Return how to start it."""
        command = super().command(settings)
        extra = (
            "--slot-save-path",
            f"{self.folder}/",
            "--cache-ram",
            "0",
            "--ctx-checkpoints",
            "0",
        )
        return Command(argv=command.argv + extra, environment=command.environment)


@dataclass(frozen=True)
class Row:
    """One depth of one model."""

    depth: int
    decode: float
    """Tokens a second, all sequences together: the median of the repeats."""
    spread: float
    """The most of the repeats over the least."""
    prefill: float
    """Tokens a second on the way to this depth, one sequence."""
    saved_bytes: int
    """Keys, values and states of one sequence."""


def export(work: Path, shape: RandomShape, layout: Layout, *, unpadded: bool) -> Path:
    """Write the file of a model once; return its path."""
    name = f"h{len(layout.converted)}"
    folder = work / f"{shape.name}-{name}{'-unpadded' if unpadded else ''}"
    if not (folder / FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = make_random(shape, layout, name=name)
        (write_unpadded if unpadded else write)(model, folder, "q8_0")
    return folder / FILE


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request in llama-server's own dialect."""
    with Connection(url + path, 3600) as connection:
        text = json.dumps(body).encode()
        answer = connection.send("POST", text, {"Content-Type": "application/json"})
        return json.loads(answer.read())


def ask(url: str, slot: int, prompt: Sequence[int], new_tokens: int) -> dict[str, float]:
    """Continue a prompt in a slot from where its cache ends; return the timings."""
    body = {"prompt": list(prompt), "id_slot": slot, "n_predict": new_tokens, "cache_prompt": True}
    return post(url, "/completion", body | {"ignore_eos": True, "temperature": 0})["timings"]


def decode(url: str, prompt: Sequence[int], batch: int, new_tokens: int) -> float:
    """Restore the saved cache in every slot, go on in all at once; return tokens a second."""
    for slot in range(batch):
        post(url, f"/slots/{slot}?action=restore", {"filename": SAVED})
    with ThreadPoolExecutor(batch) as pool:
        timings = list(
            pool.map(lambda slot: ask(url, slot, [*prompt, slot + 3], new_tokens), range(batch))
        )
    assert all(one["prompt_n"] == 1 for one in timings), "a slot did not keep its cache"
    return sum(one["predicted_per_second"] for one in timings)


def measure(file: Path, given: argparse.Namespace) -> tuple[list[Row], int]:
    """Return a row for each depth, and the most memory that the server held."""
    draw = random.Random(0)
    tokens = [draw.randrange(3, 4096) for _ in range(max(given.depths))]
    settings = ServeSettings(
        model=file,
        max_sequences=given.batch,
        context_tokens=max(given.depths) + given.new_tokens + 256,
        dtype="float16",
        threads=1,
        reuse_prefixes=True,
    )
    rows = []
    with serving(Saving(file.parent), settings) as server:
        for place, depth in enumerate(given.depths):
            if place:
                post(server.url, "/slots/0?action=restore", {"filename": SAVED})
            timings = ask(server.url, 0, tokens[:depth], 1)
            saved = post(server.url, "/slots/0?action=save", {"filename": SAVED})
            speeds = [
                decode(server.url, tokens[:depth], given.batch, given.new_tokens)
                for _ in range(given.repeats)
            ]
            rows.append(
                Row(
                    depth=depth,
                    decode=statistics.median(speeds),
                    spread=max(speeds) / min(speeds),
                    prefill=timings["prompt_per_second"],
                    saved_bytes=saved["n_written"],
                )
            )
        peak = server.peak_memory()
    (file.parent / SAVED).unlink()
    return rows, peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("shapes"), help="folder of the models")
    parser.add_argument("--shape", default="llama-230m", help="see hybridize bench --help")
    parser.add_argument("--converted", type=int, nargs="+", default=[0, 60, 80], help="percent")
    parser.add_argument("--depths", type=int, nargs="+", default=[512, 4096, 16_384])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--unpadded", action="store_true")
    given = parser.parse_args()
    print(f"{find_processor()}; {LlamaCpp().version()}; one thread; q8_0 weights, float16 cache.")
    print(f"Shape {given.shape}, {given.batch} sequences, {given.new_tokens} new tokens each.\n")
    shape, first = find_shape(given.shape), {}
    lines: list[list[object]] = []
    for share in given.converted:
        layout = spread_layout(shape.num_layers, share / 100, "mamba2")
        file = export(given.work, shape, layout, unpadded=given.unpadded and share > 0)
        rows, peak = measure(file, given)
        for row in rows:
            ratio = row.decode / first.setdefault(row.depth, row.decode)
            lines.append(
                [
                    f"{len(layout.converted)} of {shape.num_layers}",
                    *(f"{row.depth:,}", f"{row.decode:.1f}", f"{row.spread:.2f}", f"{ratio:.2f}"),
                    *(f"{row.prefill:.0f}", f"{row.saved_bytes / MIB:,.1f}", f"{peak / MIB:,.0f}"),
                ]
            )
            print("-", *lines[-1], flush=True)
    head = ("converted", "depth", "decode tok/s", "max / min", "ratio to the teacher")
    print("\n" + table((*head, "prefill tok/s", "MiB a sequence", "peak MiB"), lines))


if __name__ == "__main__":
    main()
