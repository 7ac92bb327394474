"""Engines are started, waited for, watched and stopped; what they say as they fail is told."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridize.core.errors import MachineError, RecipeError
from hybridize.engines import Client, Sampling, ServeSettings, find_engine, serving
from hybridize.engines.base import Command
from hybridize.engines.processes import list_tree, memory_bytes
from hybridize.engines.server import find_port, format_host

SERVER = """
import http.server, json, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"child": child.pid, "data": [{"id": "fake"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DEAD = "print('one'); print('there is no such model'); raise SystemExit(7)"
DEAF = "import time; print('still loading', flush=True); time.sleep(600)"


class Fake:
    """An engine that is a few lines of Python."""

    name = "fake"
    health_path = "/health"
    request_fields = {"mine": 1}  # noqa: RUF012

    def __init__(self, program: str) -> None:
        self.program = program

    def version(self) -> str | None:
        return "1"

    def why_not(self, model: Path) -> str | None:
        return None

    def command(self, settings: ServeSettings) -> Command:
        return Command(argv=(sys.executable, "-c", self.program, str(settings.port)))


SETTINGS = ServeSettings(model=Path("nowhere"))


def is_running(pid: int) -> bool:
    """Tell whether a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_engine_is_served_and_ended_with_all_it_started():
    with serving(Fake(SERVER), SETTINGS) as server:
        client = Client(server.url)
        assert client.model == "fake"
        child = client.get("/anything")["child"]
        assert child in list_tree(server.pid)
        assert server.memory() > memory_bytes(child) > 0
        server.reset_peak_memory()
        assert server.peak_memory() > 0
        assert server.processor_seconds() > 0
        server.check()
        assert "listening" in server.log.read_text()
        log = server.log
    deadline = time.monotonic() + 10
    while (is_running(child) or is_running(server.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)
    assert not is_running(server.pid)
    assert not log.exists()


def test_an_engine_is_ended_when_the_block_raises():
    with pytest.raises(KeyError), serving(Fake(SERVER), SETTINGS) as server:
        raise KeyError
    assert server.process.poll() is not None


def test_an_engine_that_dies_is_quoted(tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(MachineError, match=r"exit code 7(.|\n)*there is no such model"),
        serving(Fake(DEAD), SETTINGS, log=log),
    ):
        pass
    assert "there is no such model" in log.read_text()


def test_an_engine_that_never_answers_is_given_up():
    with (
        pytest.raises(MachineError, match=r"within 1 s(.|\n)*still loading"),
        serving(Fake(DEAF), SETTINGS, seconds_to_start=1),
    ):
        pass


def test_an_engine_that_dies_later_is_noticed():
    with serving(Fake(SERVER), SETTINGS) as server:
        server.process.kill()
        server.process.wait()
        with pytest.raises(MachineError, match="SIGKILL"):
            server.check()


def test_a_program_that_is_not_there_is_named():
    class Missing(Fake):
        def command(self, settings: ServeSettings) -> Command:
            return Command(argv=("/no/such/program",))

    with pytest.raises(MachineError, match="/no/such/program"), serving(Missing(""), SETTINGS):
        pass


def test_who_does_not_answer_is_named():
    client = Client(f"http://127.0.0.1:{find_port()}")
    with pytest.raises(MachineError, match="does not answer"):
        client.list_models()
    with pytest.raises(RecipeError, match="not the address"):
        Client("localhost:8000").list_models()


def test_an_unknown_engine_has_a_neighbour():
    with pytest.raises(RecipeError, match="Did you mean vllm"):
        find_engine("vlm")


def test_addresses_are_written_as_they_are_reached():
    assert format_host("0.0.0.0") == "127.0.0.1"
    assert format_host("::") == "[::1]"
    assert format_host("example.org") == "example.org"


def test_our_own_server_answers_and_stops(tmp_path):
    from hybridize.models.random_weights import make_random
    from tests.engines.shapes import TINY, layout

    folder = make_random(TINY, layout("AM"), name="tiny").save(tmp_path / "tiny")
    settings = ServeSettings(model=folder, name="tiny", max_sequences=2, threads=1, api_key="key")
    with serving(find_engine("hybridize"), settings) as server:
        client = Client(server.url, api_key="key", fields={"return_token_ids": True})
        found = client.complete([5, 6, 7], Sampling(max_tokens=4))
        assert len(found.token_ids) == 4
        assert server.peak_memory() > 2**20
    assert server.process.returncode == 0


STARTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.engines.test_server import SERVER, SETTINGS, Fake
from hybridize.engines import serving
with serving(Fake(SERVER), SETTINGS) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asked of Linux only")
def test_an_engine_ends_with_who_started_it():
    root = str(Path(__file__).parents[2])
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, root], cwd=root, stdout=subprocess.PIPE, text=True
    )
    pid = int(starter.stdout.readline())
    assert is_running(pid)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)
