"""A job: one prompt to continue, from the moment it is asked for until its answer is read."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch

from hybridize.serving.sampling import Drawing, Drawn

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of an answer."""

    reason: str
    """`stop` after a token that ends the text, `length` after the last that was asked for, `error`
    where the computation failed, `cancelled` where the server stops or nobody reads."""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Read:
    """The prompt, where its logprobs were asked for."""

    tokens: tuple[Drawn, ...]
    """As if they had been drawn; nothing comes before the first, so that it has no logprob."""


Event = Drawn | Read | Ended


@dataclass(kw_only=True, eq=False)
class Job:
    """What is asked, and where the tokens go."""

    prompt: tuple[int, ...]
    """At least one token."""
    max_tokens: int
    """0 only reads the prompt."""
    drawing: Drawing
    ends: frozenset[int]
    """Tokens that end the text."""
    tells_prompt: bool = False
    """Whether the logprobs of the prompt are told too."""
    number: int = field(default_factory=lambda: next(_numbers))
    is_cancelled: bool = False
    """Set by who reads, when nobody does any more; the loop then drops the job."""
    tokens: list[int] = field(default_factory=list)
    """What was drawn; belongs to the loop."""
    generator: torch.Generator | None = None
    told: list[Drawn] = field(default_factory=list)
    """Tokens of the prompt with their logprobs, as far as it is read."""
    events: "SimpleQueue[Event]" = field(default_factory=SimpleQueue)
    cache: Any = None
    """Filled chunk by chunk with the prompt; handed over to the slot."""
    num_filled: int = 0
    """Tokens that the cache has."""

    def __post_init__(self) -> None:
        self.generator = self.drawing.make_generator()

    @property
    def ids(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.prompt, *self.tokens]

    def finish_prompt(self) -> Ended | None:
        """Tell the reader of the prompt, if asked for; return the end if nothing is drawn."""
        if self.tells_prompt and not self.tokens:
            self.events.put(Read(tokens=tuple(self.told)))
        return None if self.max_tokens else Ended(reason="length")

    def accept(self, drawn: Drawn) -> Ended | None:
        """Take in a token and tell the reader; return the end if it is the last."""
        self.tokens.append(drawn.token)
        self.events.put(drawn)
        if drawn.token in self.ends:
            return Ended(reason="stop")
        return Ended(reason="length") if len(self.tokens) >= self.max_tokens else None

    def read(self, seconds: float) -> Iterator[Event | None]:
        """Yield what happens, and None each time nothing did for `seconds`, up to the end."""
        while True:
            try:
                event = self.events.get(timeout=seconds)
            except Empty:
                yield None
                continue
            yield event
            if isinstance(event, Ended):
                return
