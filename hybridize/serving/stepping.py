"""Stepping: one token of every request at once, and prompts chunk by chunk.

Legend: R slots, T tokens, D model width, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers import MixerContext
from hybridize.serving.jobs import Job
from hybridize.serving.memory import ROWS_ATTENTION, SlotMemory, attend_rows, find_num_slots
from hybridize.serving.sampling import Drawn, tell

PROMPT_CHUNK = 512
"""Tokens of a prompt that are taken in between two steps of the others."""
LOGITS_AT_ONCE = 64
"""Places of a prompt whose logits are held at a time, for the sake of memory."""


class Stepper:
    """Computes for the loop; holds the memory of all requests that are being answered.

    An answer does not depend on the others: prompts are taken in alone, in chunks that depend on
    their length only, and a step has the same number of rows whoever is there; see
    `find_num_slots`.

    Args:
        network: the model, on the device to compute on.
        max_sequences: requests to answer together.
    """

    def __init__(self, network: HybridForCausalLM, max_sequences: int) -> None:
        AttentionInterface.register(ROWS_ATTENTION, attend_rows)
        weights = [part.weight for part in network.modules() if isinstance(part, nn.Linear)]
        found = find_num_slots(weights, max_sequences)
        self.network = network
        self.is_alone = found is None
        self.max_sequences = 1 if found is None else max_sequences
        self.memory = SlotMemory(network.layout.mixers, found or 1)
        self._config: Any = network.config.teacher

    @property
    def free_slot(self) -> int | None:
        """Return a slot that no request has; None where all that may be answered are."""
        slots = (slot for slot in range(self.max_sequences) if slot not in self.memory.apart)
        return next(slots, None)

    def fill(self, job: Job) -> Tensor | None:
        """Take in the next chunk of a job; return the logits (V) behind the last one.

        Where the positions of a family switch, all is taken in at once, so that all turn alike.
        """
        if job.cache is None:
            job.cache = self.network.make_cache()
        ids = job.ids
        size = len(ids) if self.network.model.rope_switch is not None else PROMPT_CHUNK
        chunk = ids[job.num_filled : job.num_filled + size]
        made = self.network(
            torch.tensor([chunk], device=self.network.device),
            past_key_values=job.cache,
            logits_to_keep=1,
            output_hidden_states=job.tells_prompt,
        )
        if job.tells_prompt:
            self._tell_prompt(job, made.hidden_states[-1][0])
        job.num_filled += len(chunk)
        return made.logits[0, -1] if job.num_filled == len(ids) else None

    def _tell_prompt(self, job: Job, hidden_TD: Tensor) -> None:
        """Note the logprobs of the tokens of the prompt that follow those of a chunk."""
        if not job.told:
            job.told.append(Drawn(token=job.prompt[0], logprob=None, likely=()))
        first = len(job.told) - 1 - job.num_filled
        last = min(len(hidden_TD), len(job.prompt) - 1 - job.num_filled)
        for start in range(first, last, LOGITS_AT_ONCE):
            rows_TD = hidden_TD[start : min(start + LOGITS_AT_ONCE, last)]
            begin = job.num_filled + start + 1
            tokens = job.prompt[begin : begin + len(rows_TD)]
            job.told += tell(self.network.lm_head(rows_TD), tokens, job.drawing)

    def place(self, job: Job, slot: int) -> None:
        """Give a job that is filled a slot to be stepped in."""
        self.memory.put(slot, job.cache, len(job.prompt) + job.max_tokens)
        job.cache = None

    def is_past_switch(self, job: Job) -> bool:
        """Tell whether positions turn differently from the next token on; then fill afresh."""
        return len(job.ids) - 1 == self.network.model.rope_switch

    def step(self, jobs: Mapping[int, Job]) -> Tensor:
        """Take in the last token of each job, by its slot; return the logits (R, V)."""
        model, memory = self.network.model, self.memory
        ids_R1 = torch.zeros(memory.num_slots, 1, dtype=torch.long)
        positions_R1 = torch.zeros_like(ids_R1)
        for slot, job in jobs.items():
            ids_R1[slot] = job.tokens[-1]
            positions_R1[slot] = len(job.prompt) + len(job.tokens) - 1
        device = self.network.device
        hidden_R1D = model.scale_embedding(model.embed_tokens(ids_R1.to(device)))
        ctx = self._make_context(hidden_R1D, positions_R1.to(device), memory)
        with self._attending_rows():
            for place, layer in enumerate(model.layers):
                if memory.is_apart(place):
                    hidden_R1D = self._step_apart(layer, hidden_R1D, ctx, jobs)
                else:
                    hidden_R1D = layer(hidden_R1D, ctx)
        logits_R1V: Tensor = self.network.lm_head(model.norm(hidden_R1D))
        return logits_R1V[:, 0]

    def _step_apart(
        self, layer: nn.Module, hidden_R1D: Tensor, ctx: MixerContext, slots: Mapping[int, Job]
    ) -> Tensor:
        """Step a layer request by request."""
        stepped_R1D = hidden_R1D.clone()
        for slot in slots:
            row = slice(slot, slot + 1)
            alone = MixerContext(
                positions_BT=ctx.positions_BT[row],
                rope=(ctx.rope[0][row], ctx.rope[1][row]),
                masks=ctx.masks,
                cache=self.memory.get_apart(slot),  # type: ignore[arg-type]
            )
            stepped_R1D[row] = layer(hidden_R1D[row], alone)
        return stepped_R1D

    def _make_context(
        self, hidden_R1D: Tensor, positions_R1: Tensor, memory: SlotMemory
    ) -> MixerContext:
        rotary = self.network.model.rotary_emb
        if self.network.model.rope_switch is None:
            rope = rotary(hidden_R1D, position_ids=positions_R1)
        else:
            # Which way positions turn is settled by the longest row: so each is asked alone.
            rows = [rotary(hidden_R1D, position_ids=row_1[None]) for row_1 in positions_R1]
            rope = (torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]))
        layers: Any = self.network.model.layers
        return MixerContext(
            positions_BT=positions_R1,
            rope=rope,
            masks={layer.window: None for layer in layers},
            cache=memory,  # type: ignore[arg-type]
        )

    @contextmanager
    def _attending_rows(self) -> Iterator[None]:
        """Let the family's attention look at each request's own keys."""
        before, self._config._attn_implementation = (
            self._config._attn_implementation,
            ROWS_ATTENTION,
        )
        try:
            yield
        finally:
            self._config._attn_implementation = before
