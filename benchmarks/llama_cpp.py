"""Decoding speed and memory in llama.cpp of a Llama shape with none, 60 and 80 % converted.

    python benchmarks/llama_cpp.py --bench PATH/llama-batched-bench --work /tmp/shapes \
        > benchmarks/tables/llama_cpp.md

The weights are random: speed does not depend on them. All sequences share one prompt, which is
computed once and copied into the cache of each, so that reaching a depth costs one sequence's
prompt; from there each decodes on its own. `--unpadded` writes the mixers as wide as the hidden
size, for a build of llama.cpp without the check of their width (docs/llama-cpp.md).
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import find_processor, table

from hybridize.core.layout import Layout
from hybridize.core.shapes import RandomShape, find_shape, spread_layout
from hybridize.exports.gguf import FILE, write, write_unpadded
from hybridize.models.random_weights import make_random

MIB = 2**20


def export(work: Path, shape: RandomShape, layout: Layout, *, unpadded: bool) -> Path:
    """Write the file of a model once; return its path."""
    name = f"h{len(layout.converted)}"
    folder = work / f"{shape.name}-{name}{'-unpadded' if unpadded else ''}"
    if not (folder / FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = make_random(shape, layout, name=name)
        (write_unpadded if unpadded else write)(model, folder, "q8_0")
    return folder / FILE


def measure(
    bench: str, file: Path, depths: Sequence[int], batch: int, new_tokens: int
) -> tuple[list[dict[str, float]], int]:
    """Return what llama-batched-bench says of each depth, and the most memory it held in bytes."""
    cells = batch * (max(depths) + new_tokens)
    argv = [bench, "-m", str(file), "-c", str(cells), "-t", "1", "-tb", "1", "-pps"]
    argv += ["-npp", ",".join(map(str, depths)), "-ntg", str(new_tokens), "-npl", str(batch)]
    argv += ["-fa", "on", "--output-format", "jsonl"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(argv)} ended with status {status}")
        output.seek(0)
        rows = [json.loads(line) for line in output if line.startswith("{")]
    return rows, usage.ru_maxrss * 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", default="llama-batched-bench", help="the program")
    parser.add_argument("--work", type=Path, default=Path("shapes"), help="folder of the models")
    parser.add_argument("--shape", default="llama-230m", help="see hybridize bench --help")
    parser.add_argument("--converted", type=int, nargs="+", default=[0, 60, 80], help="percent")
    parser.add_argument("--depths", type=int, nargs="+", default=[512, 4096, 16_384])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--unpadded", action="store_true")
    given = parser.parse_args()
    print(f"Machine: {find_processor()}; one thread; q8_0 weights, float16 cache, flash attention.")
    print(f"Batch {given.batch}, {given.new_tokens} new tokens each.\n")
    lines: list[list[object]] = []
    first: dict[int, float] = {}
    shape = find_shape(given.shape)
    for share in given.converted:
        layout = spread_layout(shape.num_layers, share / 100, "mamba2")
        file = export(given.work, shape, layout, unpadded=given.unpadded and share > 0)
        rows, peak = measure(given.bench, file, given.depths, given.batch, given.new_tokens)
        for row in rows:
            depth, speed = int(row["pp"]), row["speed_tg"]
            ratio = speed / first.setdefault(depth, speed)
            lines.append(
                [
                    f"{len(layout.converted)} of {shape.num_layers}",
                    *(f"{depth:,}", f"{speed:.1f}", f"{ratio:.2f}", f"{row['speed_pp']:.0f}"),
                    f"{peak / MIB:,.0f}",
                ]
            )
        print(f"{share} %: {layout}, {file.stat().st_size / MIB:.0f} MiB", flush=True)
    head = ("converted", "depth", "decode tok/s", "ratio", "prefill tok/s", "peak MiB")
    print("\n" + table(head, lines))


if __name__ == "__main__":
    main()
