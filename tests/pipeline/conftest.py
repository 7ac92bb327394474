"""A finished run of a tiny recipe, and copies of it for tests that change it."""

import shutil
import time

import pytest
import torch

from tests.pipeline.small import WriteNews, run, write_recipe
from tests.tiny_tasks import save_task_teacher


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums in several threads may round otherwise, and threads fight over the cores of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return write_recipe(folder / "small.yaml", save_task_teacher(folder / "teacher"))


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory, one_thread):
    """Folder of a run that went down the whole street; its news and seconds lie beside it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    started = time.process_time()
    run(recipe, out, observer=WriteNews(out.with_name("news")))
    out.with_name("seconds").write_text(str(time.process_time() - started))
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")
