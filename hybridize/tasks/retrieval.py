"""Retrieval problems of a chosen length, with the facts that are asked for at a chosen depth."""

from random import Random

from hybridize.tasks.text import passage
from hybridize.tasks.words import NOUNS

NUM_ASKED = 2
"""Facts that are asked for, as in the shortest questions of the kind `recall`."""
NUM_OTHERS = 6
"""Facts scattered over the text, at most, that are not asked for."""
WORDS_BETWEEN = 24
"""Words of text for each of them; a short text has fewer."""
AROUND = 10
"""Words of a prompt beside its text: markers, the kind, the question."""
SHORTEST = 32
"""Words of the shortest prompt."""


def write_retrieval(
    rng: Random, num_words: int, depth: float
) -> tuple[list[str], list[str], list[str]]:
    """Write a prompt of about `num_words` words in the form of the kind `recall`.

    Args:
        depth: where in the text the facts that are asked for lie, 0 its beginning, 1 its end.

    Returns:
        The words of the prompt, of the thinking and of the answer.
    """
    room = max(SHORTEST, num_words) - AROUND
    num_others = min(NUM_OTHERS, room // WORDS_BETWEEN)
    keys = rng.sample(NOUNS, NUM_ASKED + num_others)
    facts = [[key, "=", rng.choice(NOUNS), ";"] for key in keys]
    asked, others = facts[:NUM_ASKED], facts[NUM_ASKED:]
    sentences: list[list[str]] = []
    while sum(map(len, sentences)) < room - 4 * len(facts):
        sentences.append(passage(rng, 1))
    places = [(depth, fact) for fact in asked] + [(rng.random(), fact) for fact in others]
    body: list[str] = []
    done = 0
    for share, fact in sorted(places, key=lambda place: place[0]):
        until = round(share * len(sentences))
        body += [word for line in sentences[done:until] for word in line] + fact
        done = until
    body += [word for line in sentences[done:] for word in line]
    rng.shuffle(asked)
    thinking = [word for fact in asked for word in fact]
    prompt = ["recall", ":", *body, "?", *(fact[0] for fact in asked)]
    return prompt, thinking, [fact[2] for fact in asked]
