"""Convert a folder of random weights: peak memory, and time beside that of copying its files.

    python benchmarks/surgery.py --size 4 --shard 0.5

`hybridize convert` runs in a process of its own, which tells its largest resident memory; every
second layer becomes Mamba-2. Copying and converting take turns, and both wait until the disk holds
the files. Seconds of the processor are told beside those of the clock, as a busy machine does not
stretch them; what Python takes to start is measured and taken off.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
SHARE, FIXED = 1.5, 500e6
"""The bound: this many times the largest files of input and output, and this many bytes more."""
WATCH = """
import runpy, sys
sys.argv[:1] = ["hybridize"]
try:
    runpy.run_module(sys.argv.pop(1), run_name=sys.argv.pop(1))
finally:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""
"""Runs a module under a name, then tells the largest resident memory so far, in KiB."""


@dataclass(frozen=True)
class Cost:
    """What a process, or a copy, took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: float = 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=4.0, help="GB of the teacher, in bfloat16")
    parser.add_argument("--shard", type=float, default=0.5, help="GB of one file of it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="folder to work in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        measure(Path(work), options)


def measure(work: Path, options: argparse.Namespace) -> None:
    """Make a teacher, copy and convert it in turns, print the figures."""
    teacher, copied, out = (work / name for name in ("teacher", "copied", "student"))
    layers = make_teacher(teacher, options.size, options.shard)
    start = call("hybridize.api", "hybridize.api")
    copies, conversions = [], []
    for _ in range(options.repeats):
        copies.append(copy(teacher, copied))
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        conversions.append(convert(teacher, out, layers, options.shard))
    peak = max(conversion.peak_bytes for conversion in conversions)
    for name, sizes in (("input", file_sizes(teacher)), ("output", file_sizes(out))):
        largest = f"{len(sizes)} files of at most {max(sizes) / GB:.2f} GB"
        print(f"{name:<8}{sum(sizes) / GB:.2f} GB in {largest}")
    print(
        f"memory  peak {peak / GB:.2f} GB, bound {bound(teacher, out) / GB:.2f} GB "
        f"(with Python and torch alone {start.peak_bytes / GB:.2f} GB)"
    )
    written = sum(file_sizes(out)) / sum(file_sizes(teacher))
    for unit in ("seconds", "cpu_seconds"):
        copying, converting = (
            statistics.median(getattr(cost, unit) for cost in costs)
            for costs in (copies, conversions)
        )
        starting = getattr(start, unit)
        ratio = (converting - starting) / copying
        print(
            f"{unit:<12} copy {copying:.1f}, convert {converting:.1f}, of which start "
            f"{starting:.1f}: ratio {ratio:.2f}, for a byte written {ratio / written:.2f}"
        )


def make_teacher(folder: Path, size_gb: float, shard_gb: float) -> int:
    """Write a teacher of random bfloat16 weights, in files of a size; return its layers."""
    import torch
    from safetensors.torch import save_file

    from hybridize.models.loading import load_outline

    layers = write_config(folder, size_gb)
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    places: dict[str, str] = {}

    def flush() -> None:
        file = f"model-{len(shards):05d}.safetensors"
        places.update(dict.fromkeys(shards[-1], file))
        save_file(shards[-1], folder / file)
        shards[-1].clear()
        shards.append({})

    size = 0
    for name, outline in load_outline(folder).state_dict().items():
        if shards[-1] and size + 2 * outline.numel() > shard_gb * GB:
            flush()
            size = 0
        bits = torch.randint(-(2**15), 2**15, outline.shape, dtype=torch.int16, generator=generator)
        # Any sign and mantissa, but the exponent of 1: finite, and not to be compressed.
        shards[-1][name] = bits.bitwise_and_(~0x7F80).bitwise_or_(127 << 7).view(torch.bfloat16)
        size += 2 * outline.numel()
    flush()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return layers


def write_config(folder: Path, size_gb: float) -> int:
    """Write the config of a teacher of about that size; return its number of layers."""
    folder.mkdir()
    width = 512 if size_gb < 1 else 2560
    a_layer = width * width * (2.5 + 9)
    layers = max(2, round((size_gb * GB / 2 - 2 * 8192 * width) / a_layer))
    config = {
        "model_type": "mistral",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256,
        "head_dim": 64,
        "intermediate_size": 3 * width,
        "vocab_size": 8192,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return layers


def convert(teacher: Path, out: Path, layers: int, shard_gb: float) -> Cost:
    """Convert every second layer on the command line."""
    layout = "".join("AM"[layer % 2] for layer in range(layers))
    size = f"{round(shard_gb * GB)}B"
    command = ("convert", teacher, "--layout", layout, "--out", out, "--shard-size", size)
    return call("hybridize", "__main__", *command)


def call(module: str, name: str, *arguments: object) -> Cost:
    """Run a module in a Python of its own, which tells its peak: that of the kernel's count of
    children would hold the memory of this process too."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCH, module, name, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(text)
    peak_bytes = 1024 * int(text.split()[-1])
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak_bytes)


def copy(source: Path, target: Path) -> Cost:
    """Copy a folder until the disk holds it."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    shutil.copytree(source, target)
    for file in target.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    cost = Cost(time.perf_counter() - begin, time.process_time() - cpu_begin)
    shutil.rmtree(target)
    return cost


def file_sizes(folder: Path) -> list[int]:
    """List the sizes of the files of weights in a folder."""
    return [file.stat().st_size for file in folder.glob("*.safetensors")]


def bound(teacher: Path, out: Path) -> float:
    """Return the bytes of memory that a conversion may take."""
    return SHARE * (max(file_sizes(teacher)) + max(file_sizes(out))) + FIXED


if __name__ == "__main__":
    main()
