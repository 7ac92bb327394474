"""Suites of evaluation: how much each asks, and where a run keeps what it finds."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hybridize.core.errors import MachineError
from hybridize.core.quantities import short_count
from hybridize.core.sources import Tasks

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe
    from hybridize.core.sections import Evaluate

HARNESS = "lm-eval:"
"""Before the names of tasks of lm-evaluation-harness."""
COMPARING = ("agreement",)
"""Suites that ask nothing, but read text beside the teacher."""
DIAGNOSIS = "diagnosis"
"""Folder of what `evaluate.diagnose` finds."""
_LIMITS = {"tasks": 100, "quick": 20, "full": 20, "recall": 10, "agreement": 16}
_UNITS = {
    "full": "of each kind and difficulty",
    "recall": "of each length and depth",
    "agreement": "documents of each kind",
}


def limit_of(suite: str) -> int | None:
    """Return how much a suite asks where nobody says; None is all there is."""
    return None if suite.startswith(HARNESS) else _LIMITS.get(suite, 100)


def scoring_suite(section: "Evaluate") -> str | None:
    """Return the suite whose scores lie in `eval/` itself: the first that asks problems."""
    asking = (name for name in section.suite if not _has_own_form(name))
    return next(asking, None)


def more_suites(section: "Evaluate") -> dict[str, int | None]:
    """Map each other suite, in the order asked, to how much it asks."""
    others = (name for name in section.suite if name != scoring_suite(section))
    return {name: section.limits.get(name, limit_of(name)) for name in others}


def folder_name(suite: str) -> str:
    """Return the folder in `eval/` with the results of a suite that is not the scoring one."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", suite)


def _has_own_form(suite: str) -> bool:
    return suite in COMPARING or suite.startswith(HARNESS)


def has_own_text(recipe: "Recipe") -> bool:
    """Tell whether suites that read text read the recipe's held-out text, not problems."""
    return not isinstance(recipe.data.heldout, Tasks | None)


def evaluated_models(recipe: "Recipe") -> tuple[str, ...]:
    """List the models that a recipe evaluates; none where it has no such section."""
    section = recipe.evaluate
    if section is None:
        return ()
    stages = [stage.name for stage in recipe.stages]
    last = [name for name in ("sft", "merge") if getattr(recipe, name)]
    return ("teacher", *(stages if section.every_stage else stages[-1:]), *last)


def tell_evaluation(recipe: "Recipe") -> Iterator[str]:
    """Say, a line a suite, what is asked of which models; nothing where nothing is."""
    section, models = recipe.evaluate, evaluated_models(recipe)
    if section is None:
        return
    own = has_own_text(recipe)
    everyone, students = ", ".join(models), ", ".join(models[1:])
    scoring = scoring_suite(section)
    asked = {} if scoring is None else {scoring: section.problems}
    for name, limit in {**asked, **more_suites(section)}.items():
        number = "all problems" if limit is None else f"{limit} {_UNITS.get(name, 'of each kind')}"
        number = f"{limit} of each task" if limit and name.startswith(HARNESS) else number
        if name in COMPARING:
            number = f"{limit} documents of held-out text" if own else number
            yield f"{name}, {number}: {students or 'no student'} beside teacher"
        else:
            yield f"{name}, {number}: {everyone}"
    if section.diagnose:
        read = " on held-out text" if own else ""
        yield f"{DIAGNOSIS}, layer by layer{read}: {students or 'no student'} beside teacher"


def tell_quantization(recipe: "Recipe") -> Iterator[str]:
    """Say, in a line, what is quantised to which types; nothing where nothing is."""
    section = recipe.quantize
    if section is not None:
        yield (
            f"{section.model} to {', '.join(section.types)}; KL on {short_count(section.tokens)} "
            f"held-out tokens, {section.problems} problems of each kind in llama.cpp"
        )


def need_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        MachineError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise MachineError(
            "suite lm-eval needs lm-evaluation-harness, which is not installed. "
            "Install it: pip install 'hybridize[lm-eval]'."
        )
