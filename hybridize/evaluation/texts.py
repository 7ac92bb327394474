"""Continue any text and score any continuation, in this process or on a server: for the harness.

Legend: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from hybridize.core.errors import MachineError
from hybridize.engines.client import Sampling as Draw
from hybridize.evaluation.answers import generate, pad_left
from hybridize.evaluation.endpoint import Endpoint
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.subjects import InProcess

Ids = list[int]
Scored = tuple[float, bool]
"""Log-probability of a continuation in nats, and whether each of its tokens is the likeliest."""


def encode(tokenizer: Any, text: str) -> Ids:
    """Return the tokens of a text; one that begins with the first token's text gets no second."""
    bos = tokenizer.bos_token
    has_bos = bool(bos) and text.startswith(bos)
    ids: Ids = tokenizer(text, add_special_tokens=not has_bos).input_ids
    return ids


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[Ids, Ids]:
    """Return the tokens of a context and of its continuation, split where the text is.

    Spaces at the end of the context count to the continuation, whose first word has them.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    start = tokenizer.bos_token_id
    if not stripped:
        first = [tokenizer.eos_token_id if start is None else start]
        return first, tokenizer(continuation, add_special_tokens=False).input_ids
    ids = encode(tokenizer, stripped)
    return ids, encode(tokenizer, stripped + continuation)[len(ids) :]


class StopAt(StoppingCriteria):
    """Ends a row once one of its texts stands in what was generated."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_tokens: int) -> None:
        """Look behind the first `prompt_tokens` tokens of each row."""
        self._tokenizer, self._texts, self._start = tokenizer, tuple(texts), prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tell of each row whether it has ended."""
        said = [self._tokenizer.decode(ids) for ids in input_ids[:, self._start :].tolist()]
        ended = [any(text in one for text in self._texts) for one in said]
        return torch.tensor(ended, device=input_ids.device)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text


def continue_texts(
    subject: InProcess | Endpoint, texts: Sequence[str], stops: Sequence[str], sampling: Sampling
) -> list[str]:
    """Return the continuation of each text, up to the first stop."""
    if isinstance(subject, Endpoint):
        return _ask_server(subject, texts, stops, sampling)
    tokenizer = subject.tokenizer
    prompts = [encode(tokenizer, text) for text in texts]
    criteria = [StopAt(tokenizer, stops, max(map(len, prompts)))] if stops else []
    seeds = [sampling.seed_of(text, 0) for text in texts]
    rows = generate(
        subject.network, tokenizer, prompts, sampling, seeds=seeds, stopping_criteria=criteria
    )
    return [cut(tokenizer.decode(_clean(tokenizer, row)), stops) for row in rows]


def score_pairs(
    subject: InProcess | Endpoint, pairs: Sequence[tuple[Ids, Ids]], batch: int
) -> list[Scored]:
    """Return how likely each continuation is after its context.

    Raises:
        MachineError: the server does not tell.
    """
    if isinstance(subject, Endpoint):
        with ThreadPoolExecutor(max_workers=batch) as pool:
            found = list(pool.map(lambda pair: subject.score(*pair), pairs))
        told = [one for one in found if one is not None]
        if len(told) < len(found):
            raise MachineError(
                f"{subject.name}: the server does not tell the likelihood of given text, which "
                "this task needs. Use a task that generates, vLLM, our own server, or the model in "
                "this process."
            )
        return [(sum(one.logs), one.likeliest) for one in told]
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][0]) + len(pairs[place][1]))
    scored: dict[int, Scored] = {}
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        rows = _score_batch(subject, [pairs[place] for place in places])
        scored.update(zip(places, rows, strict=True))
    return [scored[place] for place in range(len(pairs))]


@torch.no_grad()
def _score_batch(subject: InProcess, pairs: Sequence[tuple[Ids, Ids]]) -> list[Scored]:
    input_ids_BT, mask_BT = pad_left(subject.tokenizer, [first + then for first, then in pairs])
    network = subject.network
    longest = max(len(then) for _, then in pairs)
    logits_BTV = network(
        input_ids=input_ids_BT.to(network.device),
        attention_mask=mask_BT.to(network.device),
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    logs_BTV = logits_BTV.float().log_softmax(-1).cpu()
    targets_BT = input_ids_BT[:, -longest:]
    taken_BT = logs_BTV.gather(-1, targets_BT[..., None])[..., 0]
    likeliest_BT = logs_BTV.argmax(-1) == targets_BT
    return [
        (taken_BT[row, longest - len(then) :].sum().item(),
         bool(likeliest_BT[row, longest - len(then) :].all()))
        for row, (_, then) in enumerate(pairs)
    ]  # fmt: skip


def _ask_server(
    subject: Endpoint, texts: Sequence[str], stops: Sequence[str], sampling: Sampling
) -> list[str]:
    def ask(text: str) -> str:
        draw = Draw(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed_of(text, 0) % 2**31,
            stop=tuple(stops)[:4],
        )
        found = subject.complete(encode(subject.tokenizer, text), draw)
        ids = _clean(subject.tokenizer, list(found.token_ids))
        return cut(subject.tokenizer.decode(ids) if ids else found.text, stops)

    with ThreadPoolExecutor(max_workers=max(1, len(texts))) as pool:
        return list(pool.map(ask, texts))


def _clean(tokenizer: Any, ids: Ids) -> Ids:
    """Return tokens up to the one that ends the text, and no padding."""
    end = tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
