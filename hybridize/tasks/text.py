"""Plain text of the tasks' vocabulary, without traces: the stand-in for pre-training data."""

from random import Random

from hybridize.tasks.words import ADJECTIVES, NOUNS, SMALL_WORDS, VERBS

_ARTICLES = SMALL_WORDS[:2]
_PLACES = ("near", "under", "with")


def sentence(rng: Random) -> list[str]:
    """Draw one sentence of 5 to 11 words, the full stop included."""
    words = _noun_phrase(rng)
    if rng.random() < 0.25:
        return [*words, "is", rng.choice(ADJECTIVES), "."]
    words += [rng.choice(VERBS), *_noun_phrase(rng)]
    if rng.random() < 0.3:
        words += [rng.choice(_PLACES), *_noun_phrase(rng)]
    return [*words, "."]


def passage(rng: Random, num_words: int) -> list[str]:
    """Draw whole sentences until at least `num_words` words stand there.

    Half of the sentences repeat an earlier noun as their subject, so that the text has something
    for attention to find.
    """
    words: list[str] = []
    seen: list[str] = []
    while len(words) < num_words:
        line = sentence(rng)
        nouns = [position for position, word in enumerate(line) if word in _NOUNS]
        if seen and rng.random() < 0.5:
            line[nouns[0]] = rng.choice(seen[-4:])
        seen += [line[position] for position in nouns]
        words += line
    return words


def _noun_phrase(rng: Random) -> list[str]:
    article = rng.choice(_ARTICLES)
    if rng.random() < 0.4:
        return [article, rng.choice(ADJECTIVES), rng.choice(NOUNS)]
    return [article, rng.choice(NOUNS)]


_NOUNS = frozenset(NOUNS)
