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

import torch
from machine import find_processor, table
from transformers import LlamaConfig

from hybridize.core.layout import Layout
from hybridize.exports.gguf import FILE, write, write_unpadded
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM
from hybridize.models.model import Model

MIB = 2**20
LAYERS = 28
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 1792,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 32_768,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""236 million parameters in 28 layers."""


def spread(num_layers: int, share: int) -> Layout:
    """Return a layout with so many percent converted, at least, evenly among the others."""
    converted = -(-num_layers * share // 100)
    chosen = [
        layer
        for layer in range(num_layers)
        if (layer + 1) * converted // num_layers > layer * converted // num_layers
    ]
    return Layout.uniform(num_layers).convert(chosen, to="mamba2")


def build(layout: Layout, name: str) -> Model:
    """Make a model with random weights."""
    config = HybridConfig(
        teacher=LlamaConfig(**SHAPE, num_hidden_layers=layout.num_layers),
        mixers=list(layout.mixers),
    )
    torch.manual_seed(0)
    return Model(name=name, network=HybridForCausalLM(config).eval(), tokenizer=None)


def export(work: Path, share: int, num_layers: int, *, unpadded: bool) -> Path:
    """Write the file of a model once; return its path."""
    folder = work / f"h{share}-{num_layers}{'-unpadded' if unpadded else ''}"
    if not (folder / FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = build(spread(num_layers, share), f"h{share}")
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
    parser.add_argument("--layers", type=int, default=LAYERS)
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
    for share in given.converted:
        file = export(given.work, share, given.layers, unpadded=given.unpadded and share > 0)
        rows, peak = measure(given.bench, file, given.depths, given.batch, given.new_tokens)
        layout = spread(given.layers, share)
        for row in rows:
            depth, speed = int(row["pp"]), row["speed_tg"]
            ratio = speed / first.setdefault(depth, speed)
            lines.append(
                [
                    f"{len(layout.converted)} of {given.layers}",
                    *(f"{depth:,}", f"{speed:.1f}", f"{ratio:.2f}", f"{row['speed_pp']:.0f}"),
                    f"{peak / MIB:,.0f}",
                ]
            )
        print(f"{share} %: {layout}, {file.stat().st_size / MIB:.0f} MiB", flush=True)
    head = ("converted", "depth", "decode tok/s", "ratio", "prefill tok/s", "peak MiB")
    print("\n" + table(head, lines))


if __name__ == "__main__":
    main()
