"""Small models to serve, and a server in a thread of the test."""

import argparse
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hybridize.core.layout import Layout
from hybridize.engines import Client
from hybridize.models import HybridForCausalLM, load_tokenizer, save_model
from hybridize.serving.handler import Http
from hybridize.serving.process import make_app
from hybridize.surgery import convert
from tests.models.cases import SMALL
from tests.tiny import as_student, tiny_teacher

VOCAB = 176
"""Of the shipped tokenizer."""


def make_model(
    layout: str = "AMAG", family: str = "mistral", **changes: object
) -> HybridForCausalLM:
    """Convert a tiny teacher, which knows the shipped words, layer by layer."""
    teacher = as_student(tiny_teacher(family, vocab=VOCAB, layers=len(layout), **changes))
    student, goal = teacher, Layout.parse(layout)
    for kind in sorted(set(goal.mixers) - {"attention"}):
        partly = student.layout.convert(goal.layers(kind), to=kind)
        student = convert(student, partly, options=SMALL.get(kind, {}), source=teacher)
    assert student.layout == goal
    return student.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hybrid of every mixer and the shipped tokenizer."""
    path = tmp_path_factory.mktemp("models") / "mixed"
    return save_model(make_model("AMmGW"), load_tokenizer("shipped"), path)


Start = Callable[..., Client]


@pytest.fixture(scope="module")
def start(folder: Path) -> Iterator[Start]:
    """Serve the folder in a thread; return a client."""
    running: list[tuple[Http, threading.Thread]] = []

    def serve(**changes: object) -> Client:
        values = {
            "model": str(folder),
            "name": "mixed",
            "dtype": "float32",
            "threads": 1,
            "max_sequences": 4,
            "context_tokens": 256,
        }
        http = Http("127.0.0.1", 0)
        http.app = make_app(argparse.Namespace(**(values | changes)), on_failure=http.shutdown)
        http.app.loop.start()
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((http, thread))
        return Client(f"http://127.0.0.1:{http.server_address[1]}", timeout=60)

    threads = torch.get_num_threads()
    yield serve
    for http, thread in running:
        http.shutdown()
        thread.join()
        http.app.loop.stop(0)
        http.server_close()
    torch.set_num_threads(threads)
