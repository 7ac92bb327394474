"""The figure and the table of a bench in an engine show every model under every load."""

import re

import pytest

from hybridize.report.figures import chart
from hybridize.report.figures.serving import serving_speed
from hybridize.report.serving import list_rows, write_serving

SPEEDS = {"teacher": 100.0, "h7": 180.0, "h10": 310.0}
BENCH = {
    "engine": "vllm",
    "version": "0.32.0",
    "dtype": "float32",
    "threads": 1,
    "repeats": 3,
    "prefix_caching": False,
    "models": [
        {
            "model": name,
            "layout": "AAMM",
            "parameters": 10,
            "format": None,
            "rows": [
                {
                    "input_tokens": tokens,
                    "output_tokens": 256,
                    "concurrency": number,
                    "tokens_per_second": speed * number,
                    "tokens_per_processor_second": speed,
                    "decode_tokens_per_second": speed * number,
                    "seconds_to_first_token": 0.1,
                    "seconds_between_tokens": 0.01,
                    "peak_memory_bytes": 2**30,
                    "cache_bytes": 2**20,
                }
                for number in (1, 4)
                for tokens in (1, 1000)
            ],
        }
        for name, speed in SPEEDS.items()
    ],
}


def test_ratios_are_to_the_first_model():
    rows = list_rows(BENCH)
    assert len(rows) == 12
    assert {row["speedup"] for row in rows if row["model"] == "h7"} == {1.8}
    assert {row["processor_speedup"] for row in rows if row["model"] == "h10"} == {3.1}
    assert {row["load"] for row in rows} == {"1:256", "1k:256"}


@pytest.mark.parametrize("width", [chart.WIDE, chart.NARROW])
def test_every_model_and_load_is_labelled(width):
    drawn = serving_speed(list_rows(BENCH), width)
    for text in (*SPEEDS, "1:256", "1k:256", "1 at once", "4 at once"):
        assert text in drawn
    assert drawn.count("<circle") == 12
    assert drawn == serving_speed(list_rows(BENCH), width)


def test_one_load_is_drawn_too():
    rows = [row for row in list_rows(BENCH) if row["load"] == "1:256"]
    numbers = [float(text) for text in re.findall(r'c[xy]="([\d.]+)"', serving_speed(rows, 840))]
    assert len(numbers) == 12 and all(0 < number < 840 for number in numbers)


def test_table_and_figure_are_written(tmp_path):
    files = write_serving(BENCH, tmp_path)
    assert [path.name for path in files] == [f"bench-vllm.{kind}" for kind in ("md", "csv", "svg")]
    table = files[0].read_text()
    assert "prefix caching off" in table and "1k:256" in table
    assert len(files[1].read_text().splitlines()) == 13
    assert "<style>" in files[2].read_text()
