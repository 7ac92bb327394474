"""Metrics: the file, and the line on the console."""

import io

import pytest

from hybridize.core.artifacts import read_jsonl
from hybridize.training.metrics import ConsoleLine, MetricsFile, StepRecord, format_record


def record(step=1, **changes):
    values = {
        "step": step,
        "num_steps": 586,
        "tokens": step * 512_000,
        "total_tokens": 300_032_000,
        "counted_tokens": 300_000,
        "loss": 0.2143,
        "parts": {"reverse_kl": 0.2143},
        "lr": 2.7e-4,
        "grad_norm": 0.83,
        "tokens_per_second": 41_200.0,
        "seconds": 5.0,
        "peak_gib": 62.1,
        "eta_seconds": 2160.0,
    }
    return StepRecord(**{**values, **changes})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_has_units():
    assert format_record("h8", record(412)) == (
        "h8  step 412/586  211M/300M tok  rkl 0.2143 nats  lr 2.7e-04  grad 0.83  41.2k tok/s  "
        "62.1 GiB  eta 36 m"
    )


def test_in_a_pipe_there_is_a_line_now_and_then_and_the_last():
    stream = io.StringIO()
    line = ConsoleLine("h8", stream, every_seconds=1000)
    for step in (1, 2, 3, 586):
        line(record(step))
    line.close()
    assert "\r" not in stream.getvalue()
    assert [text.split()[3] for text in stream.getvalue().splitlines()] == ["1/586", "586/586"]


def test_in_a_terminal_one_line_lives():
    stream = Terminal()
    line = ConsoleLine("h8", stream)
    line(record(1))
    line(record(586))
    assert stream.getvalue().count("\r\x1b[2K") == 2
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")


def test_the_file_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write(record(1))
    kept = file.sync()
    file.write(record(2))
    file.close()
    with path.open("a") as half:
        half.write('{"step": 3, "lo')
    file = MetricsFile(path, kept)
    file.write(record(2, heldout={"reverse_kl": 0.5}))
    file.close()
    lines = list(read_jsonl(path))
    assert [line["step"] for line in lines] == [1, 2]
    assert "heldout" not in lines[0] and lines[1]["heldout"] == {"reverse_kl": 0.5}
    assert lines[0].keys() >= {"step", "tokens", "loss", "parts", "lr", "grad_norm", "seconds"}


def test_a_number_that_is_not_one_never_reaches_the_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.write(record(loss=float("nan")))
    file.close()
