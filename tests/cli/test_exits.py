"""Exit codes: 2 user, 3 machine, 130 or 143 interrupted; a traceback only for bugs or with -v."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridize.cli import recipes
from hybridize.cli.app import app
from hybridize.core import recipe as recipe_file
from hybridize.core.errors import Interrupted, MachineError, RecipeError, Terminated


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("no"), 2),
        (MachineError("no"), 3),
        (Interrupted("no"), 130),
        (Interrupted("no", terminated=True), 143),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (ZeroDivisionError(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_its_exit_code(monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(recipe_file, "load_recipe", fail)
    done = CliRunner().invoke(app, ["check", "tiny"])
    assert done.exit_code == code


def test_verbose_shows_where_an_error_came_from(monkeypatch):
    done = CliRunner().invoke(app, ["-v", "check", "nowhere.yaml"])
    assert isinstance(done.exception, RecipeError)


def test_a_wrong_option_is_the_users(call):
    call("check", "tiny", "--nothing", code=2)
    call("nothing", code=2)


def test_python_m_hybridize_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hybridize", "check", "nowhere.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(recipes.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("recipe nowhere.yaml cannot be read")
