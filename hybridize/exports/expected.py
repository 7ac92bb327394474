"""What our own class answers on a few prompts: the measure for every exported folder.

Legend: B prompts, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hybridize.exports.folder import DTYPES, float32_names
from hybridize.exports.reader import continue_greedily
from hybridize.models.hybrid import HybridForCausalLM

NEW_TOKENS = 64
"""Length of the greedy continuations."""
_LOGITS_KEPT = 32_000_000
"""Logits that are compared, over all prompts; of large vocabularies the last tokens' only."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Prompts and what our own class makes of them in float32."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids, of different lengths."""
    tokens_compared: int
    """At the end of each prompt, those whose logits are compared."""
    logits: tuple[Tensor, ...]
    """For each prompt, (tokens compared or fewer, V)."""
    continuations: tuple[tuple[int, ...], ...]
    """Greedy, `NEW_TOKENS` long, made in one left-padded batch."""
    logprobs: tuple[tuple[float, ...], ...]
    """Of the tokens of the continuations, in nats."""
    leads: tuple[tuple[float, ...], ...]
    """By how much each token of a continuation is ahead of the next best, in nats: where that is
    less than rounding, two exact programs may choose differently."""
    pad: int
    """Token that fills a batch."""
    never: tuple[int, ...]
    """Tokens that end a text, which continuations do without: engines that are asked to go on past
    one either take it or leave it out."""

    @property
    def spread(self) -> float:
        """Standard deviation of the logits."""
        return float(torch.cat([logits.flatten() for logits in self.logits]).std())


def round_weights(network: HybridForCausalLM, dtype: str | None) -> HybridForCausalLM:
    """Return a float32 model with the values that a file of this type holds.

    It is `network` itself where nothing changes, else a copy.
    """
    goal = None if dtype is None else DTYPES.get(dtype)
    rounds = goal is not None and goal != torch.float32
    if not rounds and all(p.dtype == torch.float32 for p in network.parameters()):
        return network.eval()
    small, copy = float32_names(network), deepcopy(network)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            kept = parameter if goal is None or name in small else parameter.to(goal)
            parameter.data = kept.float()
    return copy.eval()


@torch.no_grad()
def make_expected(
    network: HybridForCausalLM, prompts: Sequence[Sequence[int]], *, new_tokens: int = NEW_TOKENS
) -> Expected:
    """Ask a float32 model of ours.

    Args:
        network: see `round_weights`.
        prompts: token ids, each with room for `new_tokens` behind it.
        new_tokens: length of the continuations.
    """
    vocab_size, device = network.config.vocab_size, network.lm_head.weight.device
    compared = max(1, _LOGITS_KEPT // (vocab_size * len(prompts)))
    pad = network.config.pad_token_id or 0
    rows = [torch.tensor([prompt], device=device) for prompt in prompts]
    logits = [network(row, logits_to_keep=compared).logits[0].cpu() for row in rows]
    never = list_ends(network)
    continuations = _continue(network, prompts, pad, never, new_tokens)
    logprobs, leads = [], []
    for prompt, made in zip(prompts, continuations, strict=True):
        whole = torch.tensor([[*prompt, *made]], device=device)
        # The last logits are those after the continuation, which no token answers to.
        made_TV = network(whole, logits_to_keep=len(made) + 1).logits[0, :-1]
        taken_T1 = torch.tensor(made, device=device)[:, None]
        values_T = functional.log_softmax(made_TV, dim=-1).gather(1, taken_T1)[:, 0]
        others_TV = made_TV.scatter(1, taken_T1, float("-inf"))
        others_TV[:, list(never)] = float("-inf")
        leads_T = made_TV.gather(1, taken_T1)[:, 0] - others_TV.max(dim=-1).values
        logprobs.append(tuple(values_T.tolist()))
        leads.append(tuple(leads_T.tolist()))
    return Expected(
        prompts=tuple(tuple(prompt) for prompt in prompts),
        tokens_compared=compared,
        logits=tuple(logits),
        continuations=tuple(tuple(made) for made in continuations),
        logprobs=tuple(logprobs),
        leads=tuple(leads),
        pad=pad,
        never=never,
    )


def list_ends(network: HybridForCausalLM) -> tuple[int, ...]:
    """Return the tokens that end an answer, that of the generation settings first."""
    ends: list[int] = []
    for given in (network.generation_config.eos_token_id, network.config.eos_token_id):
        ends += [] if given is None else given if isinstance(given, list | tuple) else [given]
    return tuple(dict.fromkeys(ends))


def _continue(
    network: HybridForCausalLM,
    prompts: Sequence[Sequence[int]],
    pad: int,
    never: Sequence[int],
    new_tokens: int,
) -> list[list[int]]:
    """Continue greedily; the model's own generation settings are as they were afterwards."""
    own = network.generation_config
    try:
        return continue_greedily(network, prompts, pad=pad, never=never, new_tokens=new_tokens)
    finally:
        network.generation_config = own
