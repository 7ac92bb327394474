"""A load on a server: so many requests at once, each of so many tokens, and how fast they went."""

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from hybridize.core.errors import MachineError, RecipeError
from hybridize.core.quantities import format_tokens, parse_tokens
from hybridize.engines.client import Client, Sampling


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each request is."""

    input_tokens: int
    """Of the prompt."""
    output_tokens: int
    """Of the answer; exactly so many."""

    def __str__(self) -> str:
        return f"{format_tokens(self.input_tokens)}:{format_tokens(self.output_tokens)}"

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.input_tokens + self.output_tokens


PAPER_LOADS = (
    Load(input_tokens=1, output_tokens=16_000),
    Load(input_tokens=1000, output_tokens=8000),
    Load(input_tokens=8000, output_tokens=16_000),
)
"""Of the report on Apriel-H1, which measured them in vLLM on one H100."""


def parse_load(text: str) -> Load:
    """Read `1k:8k`: tokens of the prompt and of the answer.

    Raises:
        RecipeError: it is something else, or one of the numbers is 0.
    """
    first, colon, second = text.strip().partition(":")
    if not colon:
        raise RecipeError(f"load {text!r} is not of the form input:output, such as 1k:8k.")
    load = Load(input_tokens=parse_tokens(first), output_tokens=parse_tokens(second))
    if not (load.input_tokens and load.output_tokens):
        raise RecipeError(f"load {text!r}: prompt and answer have at least one token each.")
    return load


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How one load went."""

    seconds: float
    """From the first request sent to the last answer ended."""
    tokens_per_second: float
    """Tokens of all answers over that time."""
    decode_tokens_per_second: float
    """Tokens of all answers while all were being written: after the last first token, before the
    first answer ended."""
    seconds_to_first_token: float
    """Median over requests."""
    seconds_between_tokens: float
    """Median over the tokens of all requests; a server that sends several at once is counted by
    its mean."""


def draw_prompts(load: Load, num_prompts: int, *, vocab_size: int, seed: int) -> list[list[int]]:
    """Draw prompts of random tokens, all different, so that no engine finds a known beginning."""
    draws = random.Random(f"{load}/{num_prompts}/{seed}")
    first = min(3, vocab_size - 1)
    return [
        [draws.randrange(first, vocab_size) for _ in range(load.input_tokens)]
        for _ in range(num_prompts)
    ]


def run_load(client: Client, load: Load, prompts: Sequence[Sequence[int]]) -> Measured:
    """Send all prompts at once, read the streams, and return how fast the answers came.

    Raises:
        MachineError: a request failed, or an answer has not as many tokens as asked for.
    """
    sampling = Sampling(max_tokens=load.output_tokens, ignore_end=True)
    with ThreadPoolExecutor(len(prompts)) as pool:
        started = time.perf_counter()
        answers = list(pool.map(lambda prompt: _read(client, prompt, sampling), prompts))
        seconds = time.perf_counter() - started
    firsts = [arrivals[0] - started for arrivals in answers]
    gaps = [_find_gap(arrivals, load.output_tokens) for arrivals in answers]
    return Measured(
        seconds=seconds,
        tokens_per_second=len(prompts) * load.output_tokens / seconds,
        decode_tokens_per_second=_find_decode_speed(answers, load.output_tokens),
        seconds_to_first_token=statistics.median(firsts),
        seconds_between_tokens=statistics.median(gaps),
    )


def _read(client: Client, prompt: Sequence[int], sampling: Sampling) -> list[float]:
    """Return when each piece of one answer came."""
    arrivals: list[float] = []
    told = None
    for piece in client.stream(prompt, sampling):
        if piece.finish_reason is None or piece.text or piece.token_ids:
            arrivals.append(time.perf_counter())
        told = piece.completion_tokens if piece.completion_tokens is not None else told
    if told is not None and told != sampling.max_tokens:
        raise MachineError(
            f"{client.url} wrote {told} tokens where {sampling.max_tokens} were asked for; such "
            "answers cannot be compared. Check that the context is long enough."
        )
    if not arrivals:
        raise MachineError(f"{client.url} sent an answer without a token.")
    return arrivals


def _find_gap(arrivals: Sequence[float], num_tokens: int) -> float:
    """Return the seconds between two tokens of one answer."""
    if num_tokens == 1 or len(arrivals) == 1:
        return 0.0
    if len(arrivals) < num_tokens / 2:
        return (arrivals[-1] - arrivals[0]) / (num_tokens - 1)
    gaps = [later - one for one, later in pairwise(arrivals)]
    return statistics.median(gaps)


def _find_decode_speed(answers: Sequence[Sequence[float]], num_tokens: int) -> float:
    """Return tokens a second over the time in which every answer is being written."""
    begin = max(arrivals[0] for arrivals in answers)
    end = min(arrivals[-1] for arrivals in answers)
    if end <= begin:
        return 0.0
    counted = sum(
        sum(begin < moment <= end for moment in arrivals) * num_tokens / len(arrivals)
        for arrivals in answers
    )
    return counted / (end - begin)
