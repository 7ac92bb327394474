"""Generate answers with a model in this process, and find how likely the right ones are.

Legend: B problems of one batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybridize import tasks
from hybridize.evaluation.sampling import Draw, Sampling

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One generated answer beside the right one."""

    kind: str
    difficulty: int
    right: bool
    finished: bool
    num_tokens: int
    """Generated tokens."""
    log_likelihood: float | None
    """Mean log-probability of a token of the reference completion, in nats; None if unknown."""
    prompt: str
    generated: str
    expected: str
    sample: int = 0
    """Which of the answers to its problem this is."""
    found: str | None = None
    """The final answer in what was generated."""
    prompt_tokens: int = 0
    labels: Mapping[str, float] = field(default_factory=dict)
    """What a suite tells of the problem, such as the depth of a fact."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A problem as a suite asks it."""

    problem: tasks.Problem
    labels: Mapping[str, float] = field(default_factory=dict)
    """Name -> value by which scores are grouped, beside kind, difficulty and length."""


def problems(kinds: Sequence[str], *, num_per_kind: int, seed: int) -> list[tasks.Problem]:
    """Draw the held-out problems of an evaluation: the same for every model with the same seed."""
    return [
        tasks.make(kind, seed=seed, index=index, split="heldout")
        for kind in kinds
        for index in range(num_per_kind)
    ]


def judge(
    question: Question,
    generated: str,
    *,
    num_tokens: int,
    prompt_tokens: int,
    log_likelihood: float | None,
    sample: int = 0,
) -> Answer:
    """Compare what was generated with the right answer."""
    problem = question.problem
    found = tasks.read_answer(generated)
    return Answer(
        kind=problem.kind,
        difficulty=problem.difficulty,
        right=found == problem.answer,
        finished=found is not None,
        num_tokens=num_tokens,
        log_likelihood=log_likelihood,
        prompt=problem.prompt,
        generated=generated,
        expected=problem.completion_text,
        sample=sample,
        found=found,
        prompt_tokens=prompt_tokens,
        labels=question.labels,
    )


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: Any,
    asked: Sequence[tasks.Problem | Question],
    *,
    max_new_tokens: int | None = None,
    batch: int,
    sampling: Sampling | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Generate for each problem, prompts left-padded in batches of similar length.

    Args:
        model: any causal language model of transformers' interface.
        max_new_tokens: in the place of that of `sampling`.
        sampling: greedy, one answer a problem, where it is not given.

    Returns:
        `sampling.samples` answers per problem, in the order asked.
    """
    how = sampling or Sampling()
    how = how if max_new_tokens is None else replace(how, max_new_tokens=max_new_tokens)
    questions = [one if isinstance(one, Question) else Question(problem=one) for one in asked]
    prompts = [tokenizer(one.problem.prompt_text).input_ids for one in questions]
    places = [(place, sample) for place in range(len(questions)) for sample in range(how.samples)]
    places.sort(key=lambda pair: len(prompts[pair[0]]))
    answers: dict[tuple[int, int], Answer] = {}
    likelihoods: dict[int, float] = {}
    for first in range(0, len(places), batch):
        part = places[first : first + batch]
        fresh = sorted({place for place, _ in part} - likelihoods.keys())
        found = _log_likelihoods(model, tokenizer, [questions[place].problem for place in fresh])
        likelihoods.update(zip(fresh, found, strict=True))
        seeds = [how.seed_of(questions[place].problem.prompt, sample) for place, sample in part]
        rows = generate(model, tokenizer, [prompts[place] for place, _ in part], how, seeds=seeds)
        for (place, sample), ids in zip(part, rows, strict=True):
            kept = _until_end(ids, tokenizer.eos_token_id)
            answers[place, sample] = judge(
                questions[place],
                tokenizer.decode(kept),
                num_tokens=len(kept),
                prompt_tokens=len(prompts[place]),
                log_likelihood=likelihoods[place],
                sample=sample,
            )
        if progress:
            progress(len(answers), len(places))
    return [answers[pair] for pair in sorted(answers)]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    stopping_criteria: Sequence[Any] = (),
) -> list[list[int]]:
    """Return the tokens generated behind each prompt, padding at the end included.

    Args:
        seeds: of each row's draws.
        stopping_criteria: of transformers, beside the token that ends a text.
    """
    input_ids_BT, attention_mask_BT = pad_left(tokenizer, prompts)
    options: dict[str, Any] = {}
    if sampling.temperature > 0:
        options["logits_processor"] = [Draw(sampling, seeds)]
    if stopping_criteria:
        options["stopping_criteria"] = list(stopping_criteria)
    output_BT = model.generate(
        input_ids=input_ids_BT.to(model.device),
        attention_mask=attention_mask_BT.to(model.device),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        **options,
    )
    rows: list[list[int]] = output_BT[:, input_ids_BT.shape[1] :].tolist()
    return rows


def pad_left(tokenizer: Any, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return tokens (B, T), and a mask (B, T) that is 0 where they are padding."""
    pad = tokenizer.pad_token_id
    filler = tokenizer.eos_token_id if pad is None else pad
    longest = max(map(len, rows))
    ids = [[filler] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def _log_likelihoods(model: Any, tokenizer: Any, part: Sequence[tasks.Problem]) -> list[float]:
    """Return, per problem, the mean log-probability in nats of a token of its completion."""
    if not part:
        return []
    texts = [f"{problem.prompt_text} {problem.completion_text}" for problem in part]
    input_ids_BT, mask_BT = pad_left(tokenizer, [tokenizer(text).input_ids for text in texts])
    lengths = [len(tokenizer(problem.completion_text).input_ids) for problem in part]
    longest = max(lengths)
    logits_BTV = model(
        input_ids=input_ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    targets_BT = input_ids_BT[:, -longest:].to(logits_BTV.device)
    losses_BT = functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none"
    ).view_as(targets_BT)
    return [-losses_BT[row, longest - length :].mean().item() for row, length in enumerate(lengths)]
