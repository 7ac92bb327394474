"""Run folders shared by the tests of the report."""

from pathlib import Path

import pytest

from hybridize.report import build_report
from tests.report.fake_run import write_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "h7")
    build_report(folder)
    return folder
