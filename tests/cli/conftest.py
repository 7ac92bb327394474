"""A command line to call in the test, and folders for it to work on."""

import json

import pytest
from typer.testing import CliRunner

from hybridize.cli.app import app

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call `hybridize` in an empty folder; return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output
        return done.stdout, done.stderr

    return run


@pytest.fixture
def teacher(tmp_path):
    """A folder that holds no more than the config.json of a teacher of 12 layers."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
