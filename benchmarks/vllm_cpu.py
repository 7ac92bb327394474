"""Decoding and prefill speed in vLLM of a Llama shape with none, 60 and 80 % converted.

    HYBRIDIZE_VLLM_PYTHON=PATH python benchmarks/vllm_cpu.py --work /tmp/shapes \
        > benchmarks/tables/vllm_cpu.md

The weights are random: speed does not depend on them. For decoding, vLLM's DecodeBenchConnector
fills the keys, values and states of a prompt with constants in the place of computing it, so that
a depth costs nothing to reach. All models are served at once and asked in turns; prefix caching is
off. Beside tokens per second of the clock stand those per second of the processor, summed over the
server's processes: on one thread they are what a core of its own would give, whoever shares it.
`--profile` prints what one step of each model spends its time on, by the profiler of torch.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from machine import find_processor, table

from hybridize.core.shapes import find_shape, spread_layout
from hybridize.engines import Client, Server, ServeSettings, serving
from hybridize.engines.base import Command
from hybridize.engines.client import Sampling
from hybridize.engines.http import Connection
from hybridize.engines.vllm import Vllm
from hybridize.exports.ready import make_ready
from hybridize.models.random_weights import make_random

FILL = json.dumps({"kv_connector": "DecodeBenchConnector", "kv_role": "kv_both"})
Moment = tuple[float, float]
"""Seconds of the clock, and of the processor."""


class Filling(Vllm):
    """vLLM with a profiler, and with keys, values and states of prompts made up if asked for."""

    def __init__(self, work: Path, *, fill: bool) -> None:
        self.work, self.fill = work, fill

    def command(self, settings: ServeSettings) -> Command:
        """Return how to start it."""
        command = super().command(settings)
        extra = ["--profiler-config.profiler", "torch", "--profiler-config.torch_profiler_dir"]
        extra += [str(self.work.absolute() / f"profile-{settings.name}".replace(" ", "-"))]
        extra += ["--profiler-config.torch_profiler_with_stack", "false"]
        if self.fill:
            extra += ["--kv-transfer-config", FILL]
        return Command(argv=(*command.argv, *extra), environment=command.environment)


@dataclass(frozen=True)
class Served:
    """One model, and where it answers."""

    name: str
    server: Server
    client: Client

    def now(self) -> Moment:
        """Return the time, and the processor time of the server's processes so far."""
        return time.perf_counter(), self.server.processor_seconds()


def write(given: argparse.Namespace) -> dict[str, Path]:
    """Write the models where they are not yet; return the folder of each name."""
    shape, folders = find_shape(given.shape), {}
    for share in given.converted:
        layout = spread_layout(shape.num_layers, share / 100, "mamba2")
        name = f"h{len(layout.converted)}"
        folders[name] = given.work / f"{shape.name}-{name}-{given.dtype}"
        if not folders[name].exists():
            make_random(shape, layout, name=name, dtype=given.dtype).save(folders[name])
        if given.stock and layout.converted:
            goal = folders[f"{name} stock"] = given.work / f"{folders[name].name}-stock"
            if not goal.exists():
                make_ready(folders[name], goal, format="stock", dtype=given.dtype)
    return folders


@contextmanager
def serve_all(given: argparse.Namespace, *, fill: bool) -> Iterator[list[Served]]:
    """Serve all models."""
    with ExitStack() as stack:
        served = []
        for name, folder in write(given).items():
            settings = ServeSettings(
                model=folder,
                max_sequences=given.batch,
                context_tokens=max(given.depths if fill else given.prompts) + 256,
                dtype=given.dtype,
                threads=1,
                name=name,
            )
            engine = Filling(given.work, fill=fill)
            server = stack.enter_context(serving(engine, settings))
            client = Client(server.url, model=name, fields=engine.request_fields)
            served.append(Served(name, server, client))
        yield served


def draw(num_tokens: int, num_prompts: int) -> list[list[int]]:
    """Return random prompts."""
    return [[random.randrange(3, 4096) for _ in range(num_tokens)] for _ in range(num_prompts)]


def ask(one: Served, prompt: Sequence[int], new_tokens: int) -> list[Moment]:
    """Return when each token of an answer came."""
    sampling = Sampling(max_tokens=new_tokens, ignore_end=True)
    pieces = one.client.stream(prompt, sampling)
    return [moment for piece in pieces for moment in [one.now()] * len(piece.token_ids)]


def decode(one: Served, depth: int, given: argparse.Namespace) -> Moment:
    """Return tokens per second of the clock and of the processor while all answers are written."""
    with ThreadPoolExecutor(given.batch) as pool:
        prompts = draw(depth, given.batch)
        answers = list(pool.map(lambda prompt: ask(one, prompt, given.new_tokens), prompts))
    begin, end = max(one[0] for one in answers), min(one[-1] for one in answers)
    counted = sum(begin < moment <= end for answer in answers for moment in answer)
    return counted / (end[0] - begin[0]), counted / (end[1] - begin[1])


def prefill(one: Served, num_tokens: int) -> Moment:
    """Return tokens of one prompt per second of the clock and of the processor."""
    prompt, begin = draw(num_tokens, 1)[0], one.now()
    end = ask(one, prompt, 1)[-1]
    return num_tokens / (end[0] - begin[0]), num_tokens / (end[1] - begin[1])


def profile(one: Served, depth: int, given: argparse.Namespace) -> None:
    """Write the profile of a few steps, or of a prompt, into the folder of the models."""
    for path in ("start", "stop"):
        with Connection(f"{one.server.url}/{path}_profile", 600) as connection:
            connection.send("POST", b"", {})
        if path == "start":
            decode(one, depth, given)


def measure(given: argparse.Namespace, *, fill: bool) -> None:
    """Print the table of decoding, or of prefill."""
    lengths = given.depths if fill else given.prompts
    found: dict[tuple[str, int], list[Moment]] = {}
    with serve_all(given, fill=fill) as served:
        for one in served:
            decode(one, 16, given)
        for length in lengths:
            for _ in range(given.repeats):
                for one in served:
                    speed = decode(one, length, given) if fill else prefill(one, length)
                    found.setdefault((one.name, length), []).append(speed)
        if given.profile:
            for one in served:
                profile(one, max(lengths), given)
        names = [one.name for one in served]
    lines: list[list[object]] = []
    for name in names:
        for length in lengths:
            clock, processor = (
                [statistics.median(values) for values in zip(*found[key, length], strict=True)]
                for key in (name, names[0])
            )
            speeds = [one[1] for one in found[name, length]]
            lines.append(
                [
                    *(name, f"{length:,}", f"{clock[0]:.1f}", f"{clock[0] / processor[0]:.2f}"),
                    *(f"{clock[1]:.1f}", f"{clock[1] / processor[1]:.2f}"),
                    f"{max(speeds) / min(speeds):.2f}",
                ]
            )
    what = "decode" if fill else "prefill"
    head = ("model", "depth" if fill else "prompt", f"{what} tok/s", "ratio to the teacher")
    print(table((*head, "tok per processor s", "ratio", "max / min"), lines) + "\n", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("shapes"), help="folder of the models")
    parser.add_argument("--shape", default="llama-230m", help="see hybridize bench --help")
    parser.add_argument("--converted", type=int, nargs="+", default=[0, 60, 80], help="percent")
    parser.add_argument("--depths", type=int, nargs="+", default=[512, 4096, 16_384])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", choices=("decode", "prefill"))
    parser.add_argument("--stock", action="store_true", help="also students in vLLM's own class")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    print(f"{find_processor()}; vLLM {Vllm().version()} on a CPU; one thread; {given.dtype}.")
    print(f"Shape {given.shape}, {given.batch} sequences, {given.new_tokens} new tokens each.\n")
    if given.only != "prefill":
        measure(given, fill=True)
    if given.only != "decode":
        measure(given, fill=False)


if __name__ == "__main__":
    main()
