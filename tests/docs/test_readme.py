"""The README is short, starts with a command, and prints what the commands print."""

import csv
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = ROOT / "docs" / "runs" / "tiny-full"


def blocks() -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_it_is_short_and_its_first_command_comes_early():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert next(number for number, line in enumerate(lines, 1) if "make demo" in line) <= 25


def test_the_output_of_check_is_the_pasted_one():
    command = [sys.executable, "-m", "hybridize", "check", "tiny"]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert printed in blocks()


def test_the_table_holds_the_numbers_of_the_shipped_report():
    with (RUN / "tables" / "models.csv").open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    shown = re.findall(
        r"^\| (\w+) \| (\d+) \|[^|]*\| ([\d.]+) ± ([\d.]+) \| ([\d.]+) \| ([\d.]+)x \|",
        README,
        re.MULTILINE,
    )
    assert [model for model, *_ in shown] == list(rows)
    columns = ("score", "score_standard_error", "score_share", "relative_decode_speed")
    for model, converted, *numbers in shown:
        assert int(rows[model]["converted"]) == int(converted), model
        for column, number in zip(columns, numbers, strict=True):
            digits = len(number.partition(".")[2])
            assert f"{float(rows[model][column]):.{digits}f}" == number, (model, column)
