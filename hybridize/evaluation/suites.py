"""The suites that ask problems: which, how many, and by what their scores are grouped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from hybridize import tasks
from hybridize.core.errors import RecipeError
from hybridize.core.suites import COMPARING
from hybridize.evaluation.answers import Question, problems

SUITES = {
    "tasks": "hybridize.evaluation.suites:ask_tasks",
    "quick": "hybridize.evaluation.suites:ask_quick",
    "full": "hybridize.evaluation.suites:ask_full",
    "recall": "hybridize.evaluation.suites:ask_recall",
    "agreement": "hybridize.stages.agreement:run_all",
}
"""Name -> what asks its problems, or measures. Another can be written `package.module:name`, of a
tuple of kinds of problem, or of a function from `Asked` to a list of `Question`."""

ALL_KINDS = tuple(tasks.KINDS)
LENGTHS = (64, 128, 256, 512, 896)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How much a suite asks."""

    problems: int = 100
    """tasks: of each kind. quick: of each kind, over all its difficulties. full: of each kind and
    difficulty. recall: of each length and depth."""
    seed: int = 2
    """Of the problems."""
    lengths: Sequence[int] = field(default=LENGTHS)
    """recall: tokens of the prompts, about."""
    depths: Sequence[float] = field(default=DEPTHS)
    """recall: where the facts that are asked for lie, 0 the beginning, 1 the end."""


def ask(suite: str, asked: Asked) -> list[Question]:
    """Return the problems of a suite: the same for every model with the same settings.

    Raises:
        RecipeError: there is no such suite, or it asks no problems.
    """
    if suite in COMPARING:
        raise RecipeError(
            f"suite {suite!r} asks no problems: it compares students with a teacher. "
            f"Run it alone: hybridize eval TEACHER STUDENT --suite {suite}."
        )
    module, _, name = SUITES.get(suite, suite).partition(":")
    if not name:
        raise RecipeError(f"{suite!r} is not a suite (known: {', '.join(SUITES)}).")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"suite {suite!r} cannot be imported ({error}).") from error
    questions: list[Question] = found(asked) if callable(found) else _of_kinds(found, asked)
    return questions


def ask_tasks(asked: Asked) -> list[Question]:
    """Ask each kind, difficulties as they are trained."""
    return _of_kinds(ALL_KINDS, asked)


def ask_quick(asked: Asked) -> list[Question]:
    """Ask each kind, going round its difficulties; no problem twice."""
    questions = []
    for kind in ALL_KINDS:
        levels = tasks.KINDS[kind].max_difficulty
        for level in range(1, levels + 1):
            count = len(range(level - 1, asked.problems, levels))
            questions += _distinct(kind, level, count, asked.seed)
    return questions


def ask_full(asked: Asked) -> list[Question]:
    """Ask each difficulty of each kind; no problem twice."""
    return [
        question
        for kind in ALL_KINDS
        for level in range(1, tasks.KINDS[kind].max_difficulty + 1)
        for question in _distinct(kind, level, asked.problems, asked.seed)
    ]


def ask_recall(asked: Asked) -> list[Question]:
    """Ask for facts in prompts of each length, lying at each depth."""
    return [
        Question(
            problem=tasks.make_retrieval(
                seed=asked.seed, index=index, num_words=length, depth=depth
            ),
            labels={"prompt_length": length, "depth": depth},
        )
        for length in asked.lengths
        for depth in asked.depths
        for index in range(asked.problems)
    ]


def _of_kinds(kinds: Sequence[str], asked: Asked) -> list[Question]:
    drawn = problems(kinds, num_per_kind=asked.problems, seed=asked.seed)
    return [Question(problem=problem) for problem in drawn]


def _distinct(kind: str, level: int, count: int, seed: int) -> list[Question]:
    """Draw problems of one difficulty until there are `count` different ones, or no more come."""
    found: dict[str, Question] = {}
    for index in range(20 * count):
        if len(found) == count:
            break
        problem = tasks.make(kind, seed=seed, index=index, split="heldout", difficulty=level)
        found.setdefault(problem.prompt, Question(problem=problem))
    return list(found.values())
