"""A folder is written whole or not at all, whatever stops the writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybridize.core.errors import MachineError
from hybridize.core.whole_folder import whole_folder


def write(folder: Path, text: str) -> Path:
    with whole_folder(folder) as fresh:
        (fresh / "a").write_text(text)
    return folder


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    folder = write(tmp_path / "deep" / "out", "first")
    (folder / "b").write_text("only in the first")
    write(folder, "second")
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert (folder / "a").read_text() == "second"
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("x")])
def test_what_stood_there_stands_after_an_error(error: Exception, tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "first")
    wanted = MachineError if isinstance(error, OSError) else KeyError
    with pytest.raises(wanted) as caught, whole_folder(folder) as fresh:
        (fresh / "a").write_text("half")
        raise error
    if wanted is MachineError:
        assert str(caught.value).startswith(f"{folder} could not be written (No space left")
    assert (folder / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "first")
    with (
        pytest.raises(MachineError, match=r"needs .*, but the disk has .* left\. Make room"),
        whole_folder(folder, needed_bytes=2**60),
    ):
        raise AssertionError("nothing is written")
    assert (folder / "a").read_text() == "first"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="could not be written"):
        write(tmp_path / "file" / "out", "first")


KILLED = """
import os, signal, sys
from pathlib import Path
from hybridize.core.whole_folder import whole_folder

with whole_folder(Path(sys.argv[1])) as fresh:
    (fresh / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "first")
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "a").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == [".out.writing", "out"]
    write(folder, "second")
    assert os.listdir(tmp_path) == ["out"]


def test_a_process_killed_between_two_names_loses_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "first")
    folder.rename(tmp_path / ".out.replaced")  # where a process was killed
    with pytest.raises(KeyError), whole_folder(folder):
        raise KeyError
    assert (folder / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]
