"""The quantization table: KL first, and what was not measured said in its place."""

from pathlib import Path

import pytest

from hybridize.core.artifacts import write_json
from hybridize.report import build_report, model_card
from hybridize.report.quantization import quantization_table
from hybridize.report.tables import to_csv, to_markdown
from tests.report.fake_run import write_run
from tests.report.test_csv import check_tables

SERVED = {"accuracy": 0.98, "standard_error": 0.01, "difference": None, "difference_error": None,
          "p_value": None, "num_problems": 500, "decode_tokens_per_second": 200.0,
          "tokens_per_processor_second": 300.0}  # fmt: skip
WHOLE = {"type": "unquantised", "bytes": 4_000_000, "kl": 0.0, "top1": 1.0}
SMALL = {
    **{"type": "q4_0", "bytes": 1_000_000, "kl": 5.51e-4, "kl_error": 1.38e-4},
    **{"top1": 0.9995, "top1_error": 0.0002, "tokens": 10_112, "documents": 200},
    **{"tensors": {"Q4_0": 9}, "deviation": 0.3, "unchecked": None},
}
MORE = {"difference": -0.01, "difference_error": 0.004, "p_value": 0.06, "accuracy": 0.97}


def make(served: bool) -> dict:
    """Return what quantize.json holds."""
    asked = {"suite": "tasks", "problems": 100, "repeats": 5,
             "load": {"input_tokens": 128, "output_tokens": 128}}  # fmt: skip
    rows = [WHOLE, SMALL]
    if served:
        rows = [{**WHOLE, **SERVED}, {**SMALL, **SERVED, **MORE, "decode_tokens_per_second": 300.0}]
    return {
        "model": "merge",
        "dtype": "float32",
        "rows": rows,
        "settings": {"types": ["q4_0"], "tokens": 32_768, "served": asked},
        "engine": "llama-server 1" if served else None,
        "not_served": None if served else "llama.cpp is not installed.",
    }


@pytest.fixture(params=[True, False], ids=["served", "not served"])
def run(request, tmp_path) -> Path:
    folder = write_run(tmp_path / "run")
    write_json(folder / "quantize" / "quantize.json", make(request.param))
    return folder


def test_the_report_and_the_card_show_it(run):
    page = build_report(run)
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    served = "difference that of each problem" in text
    assert served != ("not measured: llama.cpp is not installed." in text)
    assert "| q4_0 | 977 KiB | 0.25 | 0.000551 ± 0.000138 | 99.95 % |" in text
    assert ("| 0.970 ± 0.010 | -0.0100 ± 0.0040 | 300 | 1.50 |" in text) == served
    assert text.index("KL to unquantised") < text.index("## Exports")
    assert "## In fewer bits" in model_card(run, "merge")
    assert "## In fewer bits" not in model_card(run, "h7")
    assert check_tables(page) > 10


def test_kl_stands_before_scores():
    table = quantization_table(make(served=True))
    head = to_markdown(table).splitlines()[0]
    assert head.index("KL") < head.index("score") < head.index("tokens/s")
    keys = to_csv(table).splitlines()[0].split(",")
    assert {"top1", "top1_error", "p_value", "tokens_per_processor_second"} <= set(keys)


def test_small_errors_keep_their_digits():
    small = make(served=False)
    small["rows"][1] = {**SMALL, "kl": 8.2e-7, "kl_error": 4.9e-7}
    assert "8.20e-07 ± 4.9e-07" in to_markdown(quantization_table(small))
