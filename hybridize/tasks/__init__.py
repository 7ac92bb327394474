"""Seeded reasoning problems with visible traces, and plain text of the same vocabulary.

A problem is a pure function of (kind, seed, index, split): unlimited training data, and held-out
problems that cannot occur in training because the split is decided by the hash of the prompt.

    >>> from hybridize import tasks
    >>> problem = tasks.make("add", seed=0, index=3, split="heldout", difficulty=1)
    >>> problem.answer == str(sum(int(part.replace(" ", "")) for part in
    ...     problem.prompt[6:-2].split(" + "))).replace("", " ").strip()
    True

Read `kinds.py` first, then `words.py` and `text.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from hybridize.tasks.kinds import KINDS
from hybridize.tasks.retrieval import write_retrieval
from hybridize.tasks.text import passage
from hybridize.tasks.words import ANSWER, ASSISTANT, BOS, END_ANSWER, END_THINK, EOS, THINK, USER

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 16
"""One prompt in this many, chosen by its hash, belongs to the held-out split."""
MAX_WORDS = 1024
"""Words of the longest problem, prompt and completion, drawn where no difficulty is given."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A prompt, the reasoning that solves it, and its answer; words separated by spaces."""

    kind: str
    difficulty: int
    prompt: str
    thinking: str
    answer: str

    @property
    def prompt_text(self) -> str:
        """The prompt as the chat template renders it, up to and with the thinking marker."""
        return f"{BOS} {USER} {self.prompt} {ASSISTANT} {THINK}"

    @property
    def completion_text(self) -> str:
        """What the model has to write: thinking, answer, end; the loss is taken on these tokens."""
        return f"{self.thinking} {END_THINK} {ANSWER} {self.answer} {END_ANSWER} {EOS}"

    @property
    def num_words(self) -> int:
        """Words of prompt and completion together: the tokens of a word-level tokenizer."""
        return len(self.prompt_text.split()) + len(self.completion_text.split())


def make(
    kind: str, *, seed: int, index: int, split: Split = "train", difficulty: int | None = None
) -> Problem:
    """Draw problem number `index` of one kind; difficulty is uniform over the trained ones if None.

    Raises:
        ValueError: the kind is not one of `KINDS`, or the difficulty is below 1.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of task (known: {', '.join(KINDS)}).")
    if difficulty is not None and difficulty < 1:
        raise ValueError(f"difficulty {difficulty} of {kind} is below 1.")
    rng = Random(f"{seed}/{kind}/{split}/{index}")
    while True:
        level = difficulty or rng.randint(1, KINDS[kind].max_difficulty)
        prompt, thinking, answer = (" ".join(words) for words in KINDS[kind].build(rng, level))
        problem = Problem(
            kind=kind, difficulty=level, prompt=prompt, thinking=thinking, answer=answer
        )
        fits = difficulty is not None or problem.num_words <= MAX_WORDS
        if fits and split_of(prompt) == split:
            return problem


def draw(
    *, seed: int, index: int, split: Split = "train", mix: Mapping[str, float] | None = None
) -> Problem:
    """Draw problem number `index` of a mixture of kinds; all kinds in equal shares if None."""
    shares = mix or dict.fromkeys(KINDS, 1.0)
    rng = Random(f"{seed}/mix/{split}/{index}")
    kind = rng.choices(list(shares), weights=list(shares.values()))[0]
    return make(kind, seed=seed, index=index, split=split)


def make_retrieval(*, seed: int, index: int, num_words: int, depth: float) -> Problem:
    """Draw held-out problem number `index` that asks for facts at a depth of a long prompt.

    Args:
        num_words: of the prompt, about.
        depth: where in the prompt the facts lie, 0 its beginning, 1 its end.
    """
    rng = Random(f"{seed}/retrieval/{num_words}/{depth}/{index}")
    while True:
        prompt, thinking, answer = map(" ".join, write_retrieval(rng, num_words, depth))
        if split_of(prompt) == "heldout":
            return Problem(
                kind="recall", difficulty=1, prompt=prompt, thinking=thinking, answer=answer
            )


def make_text(*, seed: int, index: int, split: Split = "train") -> str:
    """Draw plain text number `index`, 40 to 400 words between the document markers, no trace."""
    rng = Random(f"{seed}/text/{split}/{index}")
    while True:
        text = " ".join(passage(rng, rng.randrange(40, 400)))
        if split_of(text) == split:
            return f"{BOS} {text} {EOS}"


def split_of(prompt: str) -> Split:
    """Tell the split a prompt belongs to, by its hash."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_SHARE == 0 else "train"


def read_answer(generated: str) -> str | None:
    """Take the final answer out of generated text; None if it has no closed answer."""
    _, found, rest = generated.partition(f"{ANSWER} ")
    answer, closed, _ = rest.partition(f" {END_ANSWER}")
    return answer.strip() if found and closed else None
