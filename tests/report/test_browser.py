"""The page in a real browser: nothing overlaps, is cut or faint, and the console is silent."""

from pathlib import Path

import pytest

from hybridize.report import build_comparison, build_report
from scripts.headless import find_browser
from scripts.look_at_report import list_unnamed, look
from tests.report.fake_run import write_run
from tests.report.test_suites import write_suites

PROGRAM = find_browser()
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is on PATH")
BAD = """<!doctype html><html><head><title>bad</title></head><body>
<p style="color:#ccc;background:#fff">faint words</p><div style="width:3000px">wide</div>
<svg viewBox="0 0 100 40" width="300" height="120"><title id="bad-title">bad</title>
<rect width="9" height="9"/><text x="10" y="20">first</text><text x="12" y="21">second</text>
<text x="90" y="35">cut off here</text><text x="1" y="38" style="font-size:1px">tiny</text></svg>
<table><thead><tr><th scope="col">a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>
<h3>too deep</h3>
<script>console.error("boom")</script></body></html>"""


@pytest.mark.slow
@needs_browser
def test_nothing_is_wrong_with_the_pages(tmp_path: Path) -> None:
    run = write_suites(tmp_path / "h7")
    other = write_run(tmp_path / "deep", num_layers=48, name="deep", noise_seed=1)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "teacher.json").write_bytes((run / "teacher.json").read_bytes())
    pages = [build_report(folder) for folder in (run, other, begun)]
    pages.append(build_comparison([run, other, begun], tmp_path / "several"))
    for page in pages:
        assert look(page, str(PROGRAM), tmp_path / "pictures") == [], page
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"wide-light-00-first.png", "phone-dark-00-first.png", "print.pdf"} <= pictures


@pytest.mark.slow
@needs_browser
def test_the_look_sees_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(BAD, encoding="utf-8")
    found = "\n".join(look(page, str(PROGRAM)))
    for words in (
        "px wider than the window",
        "of <P> faint words",
        '"first" and "second" overlap',
        '"cut off here" is cut',
        '"tiny" is 3.0 px high',
        "console.error",
        "a table has no name",
        "heading 'too deep' of level 3 follows one of level 0",
    ):
        assert words in found, f"{words!r} is not in\n{found}"


def test_a_picture_without_a_description_is_named() -> None:
    node = {"role": {"value": "image"}, "name": {"value": "Scores"}}
    assert list(list_unnamed([node])) == ["a picture is read as 'Scores', ''"]
    assert list(list_unnamed([{**node, "description": {"value": "h7: 0.9"}}])) == []
