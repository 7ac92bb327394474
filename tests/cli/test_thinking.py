"""Thinking and answer are told apart wherever the pieces of text are cut."""

import pytest

from hybridize.cli.thinking import Sorter

TEXTS = {
    "shipped": (
        True,
        " bed = bee ; </think> <answer> bee </answer>",
        [("thinking", "bed = bee ;"), ("answer", "bee")],
    ),
    "marked": (False, "<think>\nso\n</think>\n\nyes", [("thinking", "so"), ("answer", "yes")]),
    "plain": (False, "a < b and c </ d", [("answer", "a < b and c </ d")]),
    "unended": (True, "so it </thin", [("thinking", "so it </thin")]),
    "empty": (False, "", []),
    "twice": (
        False,
        "<think>a</think>b<think>c</think>d",
        [("thinking", "a"), ("answer", "b"), ("thinking", "c"), ("answer", "d")],
    ),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_give_the_same(name, size):
    is_thinking, text, expected = TEXTS[name]
    sorter = Sorter(is_thinking=is_thinking)
    given: list[tuple[str, str]] = []
    for start in range(0, len(text), size):
        given += sorter.add(text[start : start + size])
    given += sorter.finish()
    joined: list[tuple[str, str]] = []
    for kind, part in given:
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + part)
        else:
            joined.append((kind, part))
    assert joined == expected
