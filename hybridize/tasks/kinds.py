"""The five kinds of problem, each a function (rng, difficulty) -> prompt, thinking, answer words.

Each asks something else of a mixer: finding one fact far back (`recall`), counting places
(`add`), following a path through shuffled lines (`chain`), comparing a whole set (`sort`), and
copying with changes (`edit`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from hybridize.tasks.text import passage
from hybridize.tasks.words import LETTERS, NOUNS

Words = list[str]
Parts = tuple[Words, Words, Words]


def recall(rng: Random, difficulty: int) -> Parts:
    """Find facts among 4 per difficulty that lie scattered in a text of up to 110 words each."""
    num_facts = 4 * difficulty
    keys = rng.sample(NOUNS, num_facts)
    values = [rng.choice(NOUNS) for _ in keys]
    facts = [[key, "=", value, ";"] for key, value in zip(keys, values, strict=True)]
    filler_words = rng.randrange(0, 100 * difficulty)
    body: Words = []
    for fact in facts:
        body += passage(rng, rng.randrange(0, 1 + 2 * filler_words // num_facts)) + fact
    asked = rng.sample(range(num_facts), rng.randint(2, 4))
    thinking = [word for position in asked for word in facts[position]]
    return (
        ["recall", ":", *body, "?", *(keys[position] for position in asked)],
        thinking,
        [values[position] for position in asked],
    )


def add(rng: Random, difficulty: int) -> Parts:
    """Add two numbers of `difficulty` + 1 digits, lowest digit first, carry written out."""
    num_digits = difficulty + 1
    top, bottom = (rng.randrange(10 ** (num_digits - 1), 10**num_digits) for _ in range(2))
    thinking: Words = []
    carry = 0
    for x, y in zip(reversed(str(top)), reversed(str(bottom)), strict=True):
        total = int(x) + int(y) + carry
        thinking += [x, "+", y, "+", str(carry), "=", str(total // 10), str(total % 10), ";"]
        carry = total // 10
    return ["add", ":", *str(top), "+", *str(bottom), "?"], thinking, list(str(top + bottom))


def chain(rng: Random, difficulty: int) -> Parts:
    """Follow `difficulty` assignments back to a digit, then compute forward modulo ten."""
    num_others = rng.randint(0, difficulty)
    names = rng.sample(LETTERS, difficulty + 1 + num_others)
    path, others = names[: difficulty + 1], names[difficulty + 1 :]
    value = rng.randrange(10)
    definitions = {path[0]: [str(value)]}
    for previous, name in pairwise(path):
        definitions[name] = [previous, rng.choice("+-"), str(rng.randrange(1, 10))]
    for name in others:
        definitions[name] = [rng.choice(path), rng.choice("+-"), str(rng.randrange(1, 10))]
    lines = [[name, "=", *words, ";"] for name, words in definitions.items()]
    thinking = [word for name in reversed(path) for word in (name, "=", *definitions[name], ";")]
    for name in path[1:]:
        _, sign, amount = definitions[name]
        after = (value + int(amount) * (1 if sign == "+" else -1)) % 10
        thinking += [name, "=", str(value), sign, amount, "=", str(after), ";"]
        value = after
    rng.shuffle(lines)
    body = [word for line in lines for word in line]
    return ["chain", ":", *body, "?", path[-1]], thinking, [str(value)]


def sort(rng: Random, difficulty: int) -> Parts:
    """Sort 4 + 2 * `difficulty` letters: each half first, then the merge."""
    letters = rng.sample(LETTERS, 4 + 2 * difficulty)
    middle = len(letters) // 2
    thinking = [*sorted(letters[:middle]), "|", *sorted(letters[middle:]), ";"]
    return ["sort", ":", *letters, "?"], thinking, sorted(letters)


def edit(rng: Random, difficulty: int) -> Parts:
    """Apply `difficulty` changes to a list of letters, writing the list after each."""
    unused = list(rng.sample(LETTERS, len(LETTERS)))
    items = [unused.pop() for _ in range(rng.randint(4, 7))]
    prompt = ["edit", ":", *items, ";"]
    thinking: Words = []
    for _ in range(difficulty):
        change = _change(rng, items, unused)
        prompt += [*change, ";"]
        thinking += [*change, ">", *items, ";"]
    return [*prompt, "?"], thinking, list(items)


def _change(rng: Random, items: Words, unused: Words) -> Words:
    """Change `items` in place and return the words of the command."""
    name = rng.choice(["drop", "swap", "put", "put", "flip"] if len(items) > 3 else ["put"])
    if name == "drop":
        return ["drop", items.pop(rng.randrange(len(items)))]
    if name == "flip":
        items.reverse()
        return ["flip"]
    if name == "swap":
        i, j = rng.sample(range(len(items)), 2)
        items[i], items[j] = items[j], items[i]
        return ["swap", items[j], items[i]]
    position = rng.randrange(len(items))
    items.insert(position + 1, unused.pop())
    return ["put", items[position + 1], "after", items[position]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of problem and the difficulties the shipped teacher was trained on."""

    build: Callable[[Random, int], Parts]
    max_difficulty: int
    """Trained difficulties run from 1 to this number."""
    sizes: str
    """What grows with difficulty, for tables."""


KINDS: dict[str, Kind] = {
    "recall": Kind(build=recall, max_difficulty=8, sizes="4 facts per level, text up to 900 words"),
    "add": Kind(build=add, max_difficulty=5, sizes="level + 1 digits"),
    "chain": Kind(build=chain, max_difficulty=6, sizes="hops"),
    "sort": Kind(build=sort, max_difficulty=5, sizes="4 + 2 per level letters"),
    "edit": Kind(build=edit, max_difficulty=6, sizes="changes"),
}
