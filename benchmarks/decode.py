"""Decoding speed and memory of hybrids against their teacher, at growing depth and two batches.

    python benchmarks/decode.py > benchmarks/tables/decode.md

The students are converted but not trained: speed and memory do not depend on the weights. Peak
memory is that of a process of its own which reads the prompt in pieces of 512 tokens.
"""

import argparse

import torch
from machine import describe_machine, forget_peak, peak_bytes, run_apart, table

from hybridize.models.cache import cache_bytes
from hybridize.models.model import Model, load
from hybridize.stages.bench import BenchSettings, ModelSpeed, run
from hybridize.surgery.fresh import FreshSettings, convert_fresh

CONVERTED = {
    "teacher": (),
    "h7": (1, 4, 5, 7, 8, 9, 10),
    "h10": (1, 2, 3, 4, 5, 7, 8, 9, 10, 11),
}
"""Name -> the layers of the shipped teacher that are converted to mamba2."""
PIECE = 512
MIB = 2**20


def build(name: str) -> Model:
    """Convert the shipped teacher; the teacher itself where nothing is to be converted."""
    teacher = load("shipped")
    layout = teacher.layout.convert(CONVERTED[name], to="mamba2")
    student = convert_fresh(teacher.network, layout, FreshSettings(), source=teacher.network)
    return Model(name=name, network=student, tokenizer=teacher.tokenizer)


@torch.no_grad()
def measure_peak(name: str, depth: int, batch: int) -> tuple[int, int]:
    """Return the bytes added at most by prompt and 8 decoded tokens, and those of the cache."""
    network = build(name).network.eval()
    ids_BT = torch.randint(network.config.vocab_size, (batch, depth + 8))
    cache = network.make_cache()
    before = forget_peak()
    pieces = [*ids_BT[:, :depth].split(PIECE, dim=1), *ids_BT[:, depth:].split(1, dim=1)]
    for piece_BT in pieces:
        network(piece_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return peak_bytes() - before, cache_bytes(cache)


def format_rows(models: tuple[ModelSpeed, ...], batch: int) -> list[list[str]]:
    """One line per model and depth; the first model is what the others are compared with."""
    lines = []
    for model in models:
        for row, first in zip(model.rows, models[0].rows, strict=True):
            depth = row.context_tokens
            peak, held = map(int, run_apart("--peak", model.model, depth, batch).split())
            ratio = row.decode_tokens_per_second / first.decode_tokens_per_second
            lines.append(
                [
                    *(model.model, f"{depth:,}", str(batch)),
                    *(f"{row.decode_tokens_per_second:,.0f}", f"{ratio:.2f}"),
                    *(f"{row.prefill_tokens_per_second:,.0f}", f"{held / MIB:.2f}"),
                    f"{peak / MIB:.1f}",
                ]
            )
    return lines


def main() -> None:
    """Print the table, or the bytes of one of its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "DEPTH", "BATCH"))
    parser.add_argument("--depths", type=int, nargs="+", default=[256, 2048, 8192, 16384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.peak:
        name, depth, batch = given.peak
        print(*measure_peak(name, int(depth), int(batch)))
        return
    models = [build(name) for name in CONVERTED]
    rows = []
    for batch in given.batches:
        settings = BenchSettings(
            context_tokens=tuple(given.depths), output_tokens=32, batch=batch, repeats=given.repeats
        )
        rows += format_rows(run(models, settings).models, batch)
    head = ["model", "depth", "batch", "decode tok/s", "of teacher", "prefill tok/s", "cache MiB"]
    print(f"{describe_machine()}; float32, shipped teacher, medians of {given.repeats}.\n")
    print(*(f"- {model.name}: `{model.layout}`\n" for model in models), sep="")
    print(table([*head, "peak added MiB"], rows))


if __name__ == "__main__":
    main()
