"""The page for readers who hear it or use the keyboard: names, order, captions, alternatives."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hybridize.report import build_report
from tests.report.test_suites import write_suites

VOID = {"meta", "line", "rect", "circle", "path", "br"}


class _Tree(HTMLParser):
    """Lists every element with its attributes, its text and the elements it lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[dict] = []
        self.all: list[dict] = []

    def handle_starttag(self, tag, attrs) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "in": list(self.open)}
        self.all.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag) -> None:
        if tag in VOID:
            return
        assert self.open.pop()["tag"] == tag, f"{tag} is closed out of order"

    def handle_data(self, data) -> None:
        for element in self.open:
            element["text"] += data

    def find(self, tag: str, within: dict | None = None) -> list[dict]:
        return [
            one
            for one in self.all
            if one["tag"] == tag and (within is None or any(e is within for e in one["in"]))
        ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> _Tree:
    folder = write_suites(tmp_path_factory.mktemp("suites") / "h7")
    tree = _Tree()
    tree.feed(build_report(folder).read_text(encoding="utf-8"))
    assert not tree.open or tree.open[0]["tag"] == "!doctype"
    return tree


def test_the_page_names_its_language_and_its_landmarks(tree: _Tree) -> None:
    assert tree.find("html")[0]["attrs"]["lang"] == "en"
    assert [len(tree.find(tag)) for tag in ("header", "main", "nav", "h1")] == [1] * 4
    assert tree.find("title", tree.find("head")[0])[0]["text"]
    assert tree.find("nav")[0]["attrs"]["aria-label"]
    skip = tree.find("a")[0]["attrs"]
    assert skip["class"] == "skip" and skip["href"] == f"#{tree.find('main')[0]['attrs']['id']}"


def test_headings_follow_each_other_without_a_gap(tree: _Tree) -> None:
    levels = [int(one["tag"][1]) for one in tree.all if re.fullmatch(r"h[1-6]", one["tag"])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(one["text"].strip() for one in tree.find("h2"))


def test_every_figure_is_named_and_has_words_and_numbers(tree: _Tree) -> None:
    figures = tree.find("figure")
    assert len(figures) == 16
    for figure in figures:
        name = figure["attrs"]["aria-label"]
        assert len(tree.find("figcaption", figure)[0]["text"]) > 40, name
        (details,) = tree.find("details", figure)
        assert len(tree.find("table", details)) == 1, name
        assert next(one["attrs"]["href"] for one in tree.find("a", details)).endswith(".csv")


def test_every_drawing_says_what_it_shows(tree: _Tree) -> None:
    for drawing in tree.find("svg"):
        assert drawing["attrs"]["role"] == "img"
        title, description = tree.find("title", drawing)[0], tree.find("desc", drawing)[0]
        ids = [one["attrs"]["id"] for one in (title, description)]
        assert drawing["attrs"]["aria-labelledby"].split() == ids
        assert title["text"] and 20 < len(description["text"]) < 1500
        numbers = re.findall(r"\d", description["text"])
        assert numbers or "layout" in ids[0], f"{ids[0]} has no number in its message"


def test_every_table_has_a_caption_and_scopes_and_can_be_scrolled_by_keyboard(tree: _Tree) -> None:
    for table in tree.find("table"):
        (caption,) = tree.find("caption", table)
        assert caption["text"].strip()
        heads, rows = tree.find("th", table), tree.find("tr", table)
        assert all(one["attrs"]["scope"] in ("col", "row") for one in heads)
        assert sum(one["attrs"]["scope"] == "row" for one in heads) == len(rows) - 1
        box = table["in"][-1]["attrs"]
        assert (box["class"], box["tabindex"], box["role"]) == ("scroll", "0", "group")
        assert box["aria-label"] == caption["text"]


def test_colour_is_never_the_only_sign(run_folder: Path) -> None:
    text = (run_folder / "report" / "figures" / "layout-strips.svg").read_text(encoding="utf-8")
    cells = len(re.findall(r'<rect class="(?:attention|mamba)', text))
    assert cells == len(re.findall(r'class="on-(?:attention|mamba)"[^>]*>[AM]<', text)) > 0
