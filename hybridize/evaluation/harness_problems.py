"""What the task files of `harness_tasks` name: problems as data sets, and a judge of numbers.

Imported by lm-evaluation-harness, which its task files name these functions to.
"""

import re
from functools import partial
from typing import Any

from hybridize import tasks
from hybridize.evaluation.suites import Asked, ask_quick

PROBLEMS = 100
"""Of each kind, going round its difficulties."""
SEED = 2


def make_dataset(kind: str, problems: int = PROBLEMS, seed: int = SEED, **_: Any) -> dict[str, Any]:
    """Return held-out problems of one kind as the split `test` of a data set.

    Args:
        problems: how many; `seed` is theirs.
    """
    import datasets

    asked = ask_quick(Asked(problems=problems, seed=seed))
    rows = [
        {
            "prompt_text": one.problem.prompt_text,
            "answer": one.problem.answer,
            "completion_text": one.problem.completion_text,
            "difficulty": one.problem.difficulty,
        }
        for one in asked
        if one.problem.kind == kind
    ]
    return {"test": datasets.Dataset.from_list(rows)}


make_recall, make_add, make_chain, make_sort, make_edit = (
    partial(make_dataset, kind) for kind in tasks.KINDS
)


def judge_boxed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compare the last boxed number of an answer, or else its last number, with the right one."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", results[0])
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", boxed[-1] if boxed else results[0])
    said = float(numbers[-1].replace(",", "")) if numbers else None
    return {"exact_match": float(said == float(doc["answer"]))}
