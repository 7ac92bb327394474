"""What the pages say of files, rooms and commands is so."""

import re
from pathlib import Path

import pytest
import typer.main

from hybridize.cli.app import app
from tests.test_architecture import MAY_IMPORT, ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_that_are_named_exist(path):
    commands = typer.main.get_command(app).commands
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?:`|^ *)hybridize ([a-z][a-z_]*)", text, flags=re.MULTILINE):
        assert name in commands, name


def test_the_import_table_is_the_one_that_is_enforced():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", CONTRIBUTING, flags=re.MULTILINE)
    table = {room: set(re.findall(r"\w+", rooms)) for room, rooms in rows}
    wanted = {
        room: rooms - {room} or {"nothing", "of", "ours"} for room, rooms in MAY_IMPORT.items()
    }
    assert table == wanted


def test_files_that_the_pages_name_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"`((?:hybridize/)?[a-z]\w*/[\w/]+\.py)`", CONTRIBUTING + text))
    assert named
    for name in named:
        assert any((ROOT / place / name).exists() for place in ("", "hybridize")), name
