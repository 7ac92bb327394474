"""Measure prefill and decode speed, and cache bytes, against context length, models in turn.

Legend: B batch, T tokens.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.core.artifacts import plain, write_json
from hybridize.models.cache import cache_bytes
from hybridize.models.model import Model


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The load every model is put under."""

    context_tokens: tuple[int, ...] = (512, 2048, 8192)
    """Prompt lengths; decoding is timed right after each."""
    output_tokens: int = 16
    """Decoded tokens per measurement."""
    batch: int = 4
    """Sequences decoded together."""
    repeats: int = 3
    """Measurements of each point; the median is reported."""
    seed: int = 0
    """Seed of the random prompt."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One model at one context length."""

    context_tokens: int
    prefill_tokens_per_second: float
    """Prompt tokens of all sequences per second."""
    decode_tokens_per_second: float
    """Generated tokens of all sequences per second."""
    seconds_per_token: float
    """Median time of one decoding step of the whole batch."""
    cache_bytes: int
    """Bytes of keys, values and states of all sequences after the prompt."""


@dataclass(frozen=True, kw_only=True)
class ModelSpeed:
    """One model at all context lengths."""

    model: str
    layout: str
    rows: tuple[Speed, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What `bench.json` holds."""

    device: str
    threads: int
    batch: int
    output_tokens: int
    dtype: str
    models: tuple[ModelSpeed, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.device}, {self.threads} threads, batch {self.batch}, {self.dtype}; tokens/s",
            f"{'model':<10}{'context':>8}{'prefill':>10}{'decode':>10}{'x':>6}{'cache KiB':>11}",
        ]
        first = {row.context_tokens: row.decode_tokens_per_second for row in self.models[0].rows}
        for model in self.models:
            lines += [
                f"{model.model:<10}{row.context_tokens:>8}{row.prefill_tokens_per_second:>10.0f}"
                f"{row.decode_tokens_per_second:>10.0f}"
                f"{row.decode_tokens_per_second / first[row.context_tokens]:>6.2f}"
                f"{row.cache_bytes / 1024:>11.0f}"
                for row in model.rows
            ]
        return "\n".join(lines)

    __repr__ = __str__


def run(
    models: Sequence[Model],
    settings: BenchSettings,
    out: Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Time each model at each context length; the models take turns, so that drift hits all alike.

    One unreported round at the shortest context warms up. Writes `out`/bench.json if given.
    """
    points: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    contexts = sorted(settings.context_tokens)
    rounds = [(repeat, tokens) for repeat in range(settings.repeats) for tokens in contexts]
    for model in models:
        _measure(model, contexts[0], settings)
    for done, (_, tokens) in enumerate(rounds):
        for model in models:
            points.setdefault((model.name, tokens), []).append(_measure(model, tokens, settings))
        if progress:
            progress(done + 1, len(rounds))
    network = models[0].network
    bench = Bench(
        device=str(network.device),
        threads=torch.get_num_threads(),
        batch=settings.batch,
        output_tokens=settings.output_tokens,
        dtype=str(network.dtype).removeprefix("torch."),
        models=tuple(
            ModelSpeed(
                model=model.name,
                layout=str(model.layout),
                rows=tuple(
                    _summarise(points[model.name, tokens], tokens, settings.batch)
                    for tokens in contexts
                ),
            )
            for model in models
        ),
    )
    if out is not None:
        write_json(out / "bench.json", plain(bench))
    return bench


def _summarise(measured: list[tuple[float, float, int]], tokens: int, batch: int) -> Speed:
    prefill, decode = (statistics.median(one[place] for one in measured) for place in (0, 1))
    return Speed(
        context_tokens=tokens,
        prefill_tokens_per_second=batch * tokens / prefill,
        decode_tokens_per_second=batch / decode,
        seconds_per_token=decode,
        cache_bytes=measured[0][2],
    )


@torch.no_grad()
def _measure(model: Model, tokens: int, settings: BenchSettings) -> tuple[float, float, int]:
    """Return the seconds of the prefill, the median seconds of a decoding step, the cache bytes."""
    network: Any = model.network.eval()
    generator = torch.Generator().manual_seed(settings.seed)
    ids_BT = torch.randint(
        network.config.vocab_size,
        (settings.batch, tokens + settings.output_tokens),
        generator=generator,
    ).to(network.device)
    cache = network.make_cache()
    prefill = _time(network, ids_BT[:, :tokens], cache)
    held_bytes = cache_bytes(cache)
    steps = [
        _time(network, ids_BT[:, place : place + 1], cache)
        for place in range(tokens, tokens + settings.output_tokens)
    ]
    return prefill, statistics.median(steps), held_bytes


def _time(network: Any, ids_BT: torch.Tensor, cache: object) -> float:
    started = time.perf_counter()
    logits = network(ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    logits.sum().item()  # waits for the device
    return time.perf_counter() - started
