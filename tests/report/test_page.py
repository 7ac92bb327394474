"""The page of a run: self-contained, accessible, complete, deterministic, true to its CSV files."""

import csv
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hybridize.core.artifacts import read_json, write_json
from hybridize.core.errors import RunError
from hybridize.report import build_report, units, verdict
from tests.report.fake_run import write_run

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


class _Reader(HTMLParser):
    """Collects what a reader sees outside drawings, styles and file texts, and all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("svg", "style", "pre", "code", "title"):
            self.hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.hidden and self.hidden[-1] == tag:
            self.hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def _read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def _numbers_of_csv(folder: Path) -> set[str]:
    forms = (
        str, units.three_digits, units.count_text, units.tokens_text, units.bytes_text,
        units.seconds_text, units.ratio_text, lambda x: f"{x:.2f}", lambda x: f"{x:.3f}",
        lambda x: f"{x:.1f}", lambda x: f"{x:.4f}",
    )  # fmt: skip
    known: set[str] = set()
    for path in sorted(folder.glob("tables/*.csv")):
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            for field in row:
                known.update(NUMBER.findall(field))
                if NUMBER.fullmatch(field):
                    for form in forms:
                        known.update(NUMBER.findall(form(float(field))))
    return known


def test_the_page_needs_no_network_and_no_script(run_folder: Path) -> None:
    text = (run_folder / "report" / "index.html").read_text(encoding="utf-8")
    for reader_tag, attributes in _read(run_folder / "report" / "index.html").tags:
        assert reader_tag not in ("script", "link", "img", "iframe", "object")
        target = attributes.get("href") or ""
        assert not target.startswith(("http:", "https:", "//")), target
    assert "url(" not in text and "@import" not in text


def test_every_link_of_the_page_leads_somewhere(run_folder: Path) -> None:
    report = run_folder / "report"
    reader = _read(report / "index.html")
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in reader.tags:
        for key in ("href", "aria-labelledby"):
            for target in (attributes.get(key) or "").split():
                if key == "aria-labelledby" or target.startswith("#"):
                    assert target.lstrip("#") in ids
                else:
                    assert (report / target).is_file(), target


def test_every_number_in_the_text_is_also_in_a_csv(run_folder: Path) -> None:
    reader = _read(run_folder / "report" / "index.html")
    known = _numbers_of_csv(run_folder / "report")
    words = re.sub(
        r"Mamba-[12]|standard errors|\bh\d+|\w+[-_]\w*\.csv", " ", " ".join(reader.words)
    )
    definitions = {"0", "1", "2"}  # "counted from 0", "teacher = 1", "above 2 standard errors"
    missing = [n for n in NUMBER.findall(words) if n.strip(",") not in known | definitions]
    assert not missing


def test_every_figure_has_a_description_a_caption_a_table_and_a_file(run_folder: Path) -> None:
    report = run_folder / "report"
    text = (report / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", text, re.S)
    assert len(figures) == 11
    for figure in figures:
        assert figure.count("<svg") == figure.count("<desc") == 2
        assert "<figcaption>" in figure and "<details>" in figure and ".csv" in figure
    for path in report.glob("figures/*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert [child.tag.partition("}")[2] for child in root][:2] == ["title", "desc"]
        assert root[1].text


def test_the_markdown_twin_has_the_same_sections_and_figures(run_folder: Path) -> None:
    page = (run_folder / "report" / "index.html").read_text(encoding="utf-8")
    twin = (run_folder / "report" / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == re.findall(r"^## (.*)$", twin, re.M)
    for image in re.findall(r"!\[.*?\]\((.*?)\)", twin):
        assert (run_folder / "report" / image).is_file()


def test_the_report_is_the_same_when_it_is_built_again(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "h7"
    shutil.copytree(run_folder, copy)
    shutil.rmtree(copy / "report")
    build_report(copy)
    for path in sorted((run_folder / "report").rglob("*.*")):
        relative = path.relative_to(run_folder)
        assert (copy / relative).read_bytes() == path.read_bytes(), relative


PARTS = (
    "teacher.json", "recipe.yaml", "recipe.resolved.yaml", "environment.json", "status.json",
    "plan.json", "importance", "stages", "sft", "merge", "eval", "bench", "eval/teacher.json",
    "stages/02-h7/result.json", "stages/01-h4/metrics.jsonl", "importance/replace_one-h7.json",
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_report_builds_without(part: str, run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "h7"
    shutil.copytree(run_folder, copy)
    gone = copy / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert build_report(copy).is_file()
    assert verdict(copy)


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole")
    folder = tmp_path / "begun"
    folder.mkdir()
    shutil.copy(whole / "teacher.json", folder)
    page = build_report(folder).read_text(encoding="utf-8")
    assert "Not finished: no student has been trained yet, 0 of 12 layers converted." in page
    assert page.count('class="missing"') >= 6
    assert "No stage has been trained yet" in page


def test_a_killed_stage_is_drawn_as_far_as_it_came(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "h7"
    shutil.copytree(run_folder, copy)
    (copy / "stages/02-h7/result.json").unlink()
    with (copy / "stages/02-h7/metrics.jsonl").open("a") as file:
        file.write('{"step": 401, "tok')
    page = build_report(copy).read_text(encoding="utf-8")
    assert "4 of 12 layers converted" in verdict(copy) or "7 of 12" in verdict(copy)
    assert "Not finished yet: h7." in page


def test_one_format_is_built_alone(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "h7"
    shutil.copytree(run_folder, copy)
    shutil.rmtree(copy / "report")
    assert build_report(copy, ["md"]).name == "report.md"
    assert not (copy / "report" / "index.html").exists()
    with pytest.raises(RunError, match="pdf"):
        build_report(copy, ["pdf"])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        build_report(tmp_path)


def test_degenerate_numbers_are_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for path in folder.glob("eval/*.json"):
        value = read_json(path)
        for found in (*value["kinds"].values(), value["overall"]):
            found |= {"accuracy": 0.0, "standard_error": 0.0, "log_likelihood": -2.0}
        write_json(path, value)
    bench = read_json(folder / "bench" / "bench.json")
    for model in bench["models"]:
        model["rows"] = [{**model["rows"][0], "cache_bytes": 0}]
    write_json(folder / "bench" / "bench.json", bench)
    for path in folder.glob("importance/*.json"):
        value = read_json(path)
        for score in value["scores"]:
            score |= {"score": 0.0, "standard_error": None}
        write_json(path, value)
    plan = read_json(folder / "plan.json")
    plan["stages"].append({**plan["stages"][1], "name": "h9", "layout": None, "layers": None})
    write_json(folder / "plan.json", plan)
    page = build_report(folder).read_text(encoding="utf-8")
    assert "nan" not in page and "Not finished yet: h9." in page
    assert verdict(folder).startswith("7 of 12 layers converted, a teacher that solves nothing;")


def test_a_loss_stands_beside_the_speed_it_buys(run_folder: Path) -> None:
    build_report(run_folder)
    rows = list(csv.DictReader((run_folder / "report" / "tables" / "verdict.csv").open()))
    facts = {row["fact"]: row["value"] for row in rows}
    context = facts["context_tokens"]
    speed = units.ratio_text(float(facts[f"relative_decode_speed_at_{context}"]))
    text = (run_folder / "report" / "report.md").read_text(encoding="utf-8")
    bars = next(line for line in text.splitlines() if "the largest loss first" in line)
    assert f"decodes at {speed}x the teacher's speed" in bars
