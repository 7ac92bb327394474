"""What is shown while a run goes: quiet, without colours, again and again."""

import threading

import pytest

from hybridize.cli import street
from hybridize.cli.options import set_quiet
from hybridize.core.artifacts import write_json


@pytest.fixture(autouse=True)
def loud():
    """Leave the tests that follow as talkative as they were."""
    yield
    set_quiet(False)


def test_quiet_leaves_results_and_errors(call):
    _, loud_errors = call("check", "tiny")
    out, errors = call("-q", "check", "tiny")
    assert loud_errors and out and not errors
    _, errors = call("--quiet", "check", "nowhere.yaml", code=2)
    assert errors.startswith("recipe nowhere.yaml cannot be read")


def test_no_color_asks_for_none(call, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    out, _ = call("--no-color", "run", "--help")
    assert "\x1b[" not in out
    import os

    assert os.environ["NO_COLOR"] == "1"


def test_status_is_said_again_until_all_is_done(call, monkeypatch, tmp_path):
    def tell(state):
        write_json(
            tmp_path / "status.json", {"nodes": [{"node": "h1", "state": state, "seconds": None}]}
        )

    tell("running")
    looks = iter(["running", "done"])
    monkeypatch.setattr(street.time, "sleep", lambda seconds: tell(next(looks)))
    out, _ = call("status", str(tmp_path), "--watch")
    assert [line.split()[1] for line in out.splitlines()] == ["state", "running", "state", "done"]
    assert threading.current_thread() is threading.main_thread()
