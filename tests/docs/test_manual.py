"""The recipe reference is up to date, complete, and made without loading a model."""

from pathlib import Path

from hybridize.core.manual import list_settings, render_manual
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Distill

PAGE = Path(__file__).parent.parent.parent / "docs" / "recipe.md"


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert text == render_manual(), "run: hybridize ls settings > docs/recipe.md"


def test_every_section_and_setting_is_there():
    text = render_manual()
    settings = list_settings()
    for name in Recipe.model_fields:
        assert name in settings or f"## {name}" in text
    for name in Distill.model_fields:
        assert any(key.startswith(f"distill.{name}") for key in settings), name
    assert settings["stages.converted"] == "Converted layers after the stage, in all."
    assert "stages.temperature" not in settings
    assert all(settings.values())


def test_a_table_has_four_cells_in_every_row():
    rows = [line for line in render_manual().splitlines() if line.startswith("|")]
    assert rows and all(row.count(" | ") == 3 or row == "|---|---|---|---|" for row in rows)


def test_the_command_prints_the_page(tmp_path):
    from typer.testing import CliRunner

    from hybridize.cli.app import app

    done = CliRunner().invoke(app, ["ls", "settings"])
    assert done.exit_code == 0 and done.stdout == render_manual()
