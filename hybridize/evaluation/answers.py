"""Generate answers to the shipped tasks' held-out problems and score them.

Legend: B problems of one batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from hybridize import tasks


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """How well one model answered the problems of one kind (or of all kinds together)."""

    accuracy: float
    """Share of problems whose generated final answer is exactly right, 0..1."""
    standard_error: float
    """Of the accuracy: sqrt(p (1 - p) / n); for "overall" that of the mean over kinds."""
    num_problems: int
    log_likelihood: float
    """Mean log-probability of a token of the reference completion, in nats (at most 0)."""
    mean_tokens: float
    """Mean number of generated tokens."""
    finished: float
    """Share of generations that closed their answer within the token limit, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One generated answer beside the right one."""

    kind: str
    difficulty: int
    right: bool
    finished: bool
    num_tokens: int
    log_likelihood: float
    prompt: str
    generated: str
    expected: str

    def to_json(self) -> dict:
        """Return the fields as JSON values."""
        return asdict(self)


def problems(kinds: Sequence[str], *, num_per_kind: int, seed: int) -> list[tasks.Problem]:
    """Draw the held-out problems of an evaluation: the same for every model with the same seed."""
    return [
        tasks.make(kind, seed=seed, index=index, split="heldout")
        for kind in kinds
        for index in range(num_per_kind)
    ]


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: Any,
    asked: Sequence[tasks.Problem],
    *,
    max_new_tokens: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Generate greedily for each problem, prompts left-padded in batches of similar length.

    Returns:
        One `Answer` per problem, in the order asked.
    """
    order = sorted(range(len(asked)), key=lambda place: len(asked[place].prompt_text.split()))
    answers: dict[int, Answer] = {}
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        part = [asked[place] for place in places]
        inputs = tokenizer(
            [problem.prompt_text for problem in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(model.device)
        output_BT = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        likelihoods = _log_likelihoods(model, tokenizer, part)
        for place, problem, ids, likelihood in zip(
            places,
            part,
            output_BT[:, inputs.input_ids.shape[1] :].tolist(),
            likelihoods,
            strict=True,
        ):
            kept = _until_end(ids, tokenizer.eos_token_id)
            generated = tokenizer.decode(kept)
            found = tasks.read_answer(generated)
            answers[place] = Answer(
                kind=problem.kind,
                difficulty=problem.difficulty,
                right=found == problem.answer,
                finished=found is not None,
                num_tokens=len(kept),
                log_likelihood=likelihood,
                prompt=problem.prompt,
                generated=generated,
                expected=problem.completion_text,
            )
        if progress:
            progress(len(answers), len(asked))
    return [answers[place] for place in range(len(asked))]


def score(answers: Sequence[Answer]) -> tuple[dict[str, KindScore], KindScore]:
    """Return the score of each kind, and the overall score: the mean over kinds."""
    by_kind = {
        kind: _score_kind([one for one in answers if one.kind == kind])
        for kind in dict.fromkeys(one.kind for one in answers)
    }
    count = len(by_kind)
    return by_kind, KindScore(
        accuracy=sum(one.accuracy for one in by_kind.values()) / count,
        standard_error=math.sqrt(sum(one.standard_error**2 for one in by_kind.values())) / count,
        num_problems=len(answers),
        log_likelihood=sum(one.log_likelihood for one in by_kind.values()) / count,
        mean_tokens=sum(one.mean_tokens for one in by_kind.values()) / count,
        finished=sum(one.finished for one in by_kind.values()) / count,
    )


def _score_kind(answers: Sequence[Answer]) -> KindScore:
    count = len(answers)
    accuracy = sum(one.right for one in answers) / count
    return KindScore(
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / count),
        num_problems=count,
        log_likelihood=sum(one.log_likelihood for one in answers) / count,
        mean_tokens=sum(one.num_tokens for one in answers) / count,
        finished=sum(one.finished for one in answers) / count,
    )


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def _log_likelihoods(model: Any, tokenizer: Any, part: Sequence[tasks.Problem]) -> list[float]:
    """Return, per problem, the mean log-probability in nats of a token of its completion."""
    inputs = tokenizer(
        [f"{problem.prompt_text} {problem.completion_text}" for problem in part],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_token_type_ids=False,
    ).to(model.device)
    lengths = [len(tokenizer(problem.completion_text).input_ids) for problem in part]
    longest = max(lengths)
    logits_BTV = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
    targets_BT = inputs.input_ids[:, -longest:]
    losses_BT = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none"
    ).view_as(targets_BT)
    return [-losses_BT[row, longest - length :].mean().item() for row, length in enumerate(lengths)]
