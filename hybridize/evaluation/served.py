"""Files of one model in llama.cpp: what each answers to the same problems, and how fast.

All servers stand side by side and are timed in turn, so that drift of speed hits all alike; every
file's answers are held against those of the first, problem by problem.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridize.core.errors import MachineError
from hybridize.engines import Client, Server, ServeSettings, find_engine, serving
from hybridize.engines.load import Load, draw_prompts, run_load
from hybridize.evaluation.answers import Answer, Question
from hybridize.evaluation.endpoint import Endpoint
from hybridize.evaluation.paired import compare
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.scores import score
from hybridize.evaluation.suites import Asked, ask

ENGINE = "llama.cpp"
LOAD = Load(input_tokens=128, output_tokens=128)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ServedSettings:
    """What each file is asked."""

    suite: str = "tasks"
    """Whose problems are asked, greedily; see `hybridize.evaluation.suites`."""
    problems: int = 100
    """Of each kind."""
    max_new_tokens: int = 192
    """Tokens an answer may take."""
    seed: int = 2
    """Of the problems and of the bootstrap."""
    at_once: int = 16
    """Requests at a time while problems are asked; speed is that of one alone."""
    load: Load = field(default=LOAD)
    """What is timed."""
    repeats: int = 5
    """Measurements of speed; their median counts."""
    threads: int | None = None
    """Processor threads of llama.cpp; None is as many as are free."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One file in llama.cpp."""

    accuracy: float
    """Mean over kinds of the share of problems solved."""
    standard_error: float
    num_problems: int
    difference: float | None
    """Accuracy less that of the first file; None of the first."""
    difference_error: float | None
    """Standard error of the difference, from the problems' own differences."""
    p_value: float | None
    """Of McNemar's exact test that both are right equally often."""
    decode_tokens_per_second: float
    """Of one sequence alone; the prompt is not counted."""
    tokens_per_processor_second: float | None
    """Of the processor time of the server, the prompt's included; None where it is not told."""


@dataclass(frozen=True)
class _Running:
    name: str
    server: Server
    endpoint: Endpoint
    client: Client


def serve_all(
    files: Mapping[str, Path], tokenizer: Any, settings: ServedSettings, *, say: Say
) -> dict[str, Served] | str:
    """Ask each of some GGUF folders the same; return what was found, or why nothing was.

    Args:
        files: name -> folder; the first is what the others are compared with.
        tokenizer: of the model; prompts go out as its token ids.
        settings: what is asked.
        say: is told of each file that has answered.

    Raises:
        RecipeError: the suite is not known, or asks nothing.
    """
    engine, first = find_engine(ENGINE), next(iter(files.values()))
    if tokenizer is None:
        return "the model has no tokenizer to ask problems with."
    reason = engine.why_not(first)
    if reason is not None:
        return reason
    questions = ask(settings.suite, Asked(problems=settings.problems, seed=settings.seed))
    longest = max(len(tokenizer(one.problem.prompt_text).input_ids) for one in questions)
    context = max(longest + settings.max_new_tokens, settings.load.context_tokens) + 1
    try:
        with ExitStack() as stack:
            running = []
            for name, folder in files.items():
                asked = ServeSettings(
                    model=folder,
                    max_sequences=settings.at_once,
                    context_tokens=context,
                    threads=settings.threads,
                    name=name,
                )
                server = stack.enter_context(serving(engine, asked))
                endpoint = Endpoint(server.url, tokenizer, model=name, name=name)
                client = Client(server.url, model=name, fields=engine.request_fields)
                running.append(_Running(name, server, endpoint, client))
            answers = {one.name: _answer(one, questions, settings, say) for one in running}
            speeds = _time(running, len(tokenizer), settings)
    except MachineError as error:
        return f"llama.cpp did not run: {str(error).splitlines()[0]}"
    base, others = next(iter(answers.values())), list(answers)[1:]
    return {
        name: _describe(found, base if name in others else None, settings, speeds[name])
        for name, found in answers.items()
    }


def _answer(
    one: _Running, questions: Sequence[Question], settings: ServedSettings, say: Say
) -> list[Answer]:
    """Ask one file all problems, greedily."""
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=0.0,
        top_p=1.0,
        samples=1,
        seed=settings.seed,
    )
    found = one.endpoint.answer(questions, sampling, settings.at_once)
    right = sum(answer.right for answer in found)
    say(f"{one.name}: {right} of {len(found)} problems right in {ENGINE}")
    return found


def _time(
    running: Sequence[_Running], vocab_size: int, settings: ServedSettings
) -> dict[str, tuple[float, float | None]]:
    """Time all files in turn, again and again; return decode speed and that of the processor."""
    load = settings.load
    rates: dict[str, list[float]] = {one.name: [] for one in running}
    spent: dict[str, list[float]] = {one.name: [] for one in running}
    for repeat in range(settings.repeats + 1):
        prompts = draw_prompts(load, 1, vocab_size=vocab_size, seed=repeat)
        for one in running:
            before = one.server.processor_seconds()
            measured = run_load(one.client, load, prompts)
            if repeat:  # the first is to warm up
                rates[one.name].append(measured.decode_tokens_per_second)
                spent[one.name].append(one.server.processor_seconds() - before)
    found: dict[str, tuple[float, float | None]] = {}
    for one in running:
        seconds = statistics.median(spent[one.name])
        processor = load.output_tokens / seconds if seconds else None
        found[one.name] = statistics.median(rates[one.name]), processor
    return found


def _describe(
    answers: Sequence[Answer],
    base: Sequence[Answer] | None,
    settings: ServedSettings,
    speed: tuple[float, float | None],
) -> Served:
    _, overall = score(answers)
    pair = None if base is None else compare(answers, base, seed=settings.seed).overall
    return Served(
        accuracy=overall.accuracy,
        standard_error=overall.standard_error,
        num_problems=overall.num_problems,
        difference=None if pair is None else pair.difference,
        difference_error=None if pair is None else pair.standard_error,
        p_value=None if pair is None else pair.p_value,
        decode_tokens_per_second=speed[0],
        tokens_per_processor_second=speed[1],
    )
