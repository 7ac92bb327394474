"""Every number of every table of the page stands in the same row of the CSV of that table."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hybridize.report import build_comparison, build_report, units
from tests.report.fake_run import write_run
from tests.report.test_suites import write_suites

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
FORMS = (
    str, units.three_digits, units.count_text, units.tokens_text, units.bytes_text,
    units.seconds_text, units.ratio_text, lambda x: f"{x:,.0f}", lambda x: f"{x:.1f}",
    lambda x: f"{x:.2f}", lambda x: f"{x:.3f}", lambda x: f"{x:.4f}", lambda x: f"{x:.5f}",
    lambda x: f"{x:.6f}", lambda x: f"{x:.1e}",
)  # fmt: skip


class _Tables(HTMLParser):
    """Collects the cells of each table, row by row, by the table's id."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.in_cell = self.in_body = False

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs)["id"].removeprefix("table-"), [])
        self.in_body = tag == "tbody" or self.in_body
        if self.in_body and tag == "tr":
            self.rows.append([])
        if self.in_body and tag in ("td", "th"):
            self.in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag) -> None:
        self.in_body = self.in_body and tag != "tbody"
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def _known(row: list[str]) -> set[str]:
    known: set[str] = set()
    for field in row:
        known.update(NUMBER.findall(field))
        if NUMBER.fullmatch(field):
            for form in FORMS:
                known.update(NUMBER.findall(form(float(field))))
    return known


def check_tables(page: Path) -> int:
    """Compare all tables of a page with their CSV files; return how many numbers were found."""
    reader, count = _Tables(), 0
    reader.feed(page.read_text(encoding="utf-8"))
    for name, rows in reader.tables.items():
        text = (page.parent / "tables" / f"{name}.csv").read_text(encoding="utf-8")
        lines = list(csv.reader(text.splitlines()))[1:]
        assert len(lines) == len(rows), name
        for line, row in zip(lines, rows, strict=True):
            numbers = [number for cell in row for number in NUMBER.findall(cell)]
            missing = [number for number in numbers if number not in _known(line)]
            assert not missing, f"{name}: {row} has {missing}, the CSV has {line}"
            count += len(numbers)
    return count


def test_every_number_of_a_run(tmp_path: Path) -> None:
    assert check_tables(build_report(write_suites(tmp_path / "run"))) > 1000


def test_every_number_of_a_comparison(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name=name, noise_seed=3) for name in ("a", "b")]
    assert check_tables(build_comparison(runs, tmp_path / "both")) > 50


def test_every_number_of_the_shipped_report() -> None:
    page = Path(__file__).parents[2] / "docs" / "runs" / "tiny-full" / "index.html"
    if not page.is_file():
        pytest.skip("the report of the documentation is not in this checkout")
    assert check_tables(page) > 1000
