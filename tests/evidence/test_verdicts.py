"""Verdicts follow from paired differences by Student's t; the page from the results alone."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.evidence.arms import ARMS, MERGE_WEIGHTS
from benchmarks.evidence.claims import CLAIMS, DECAY, FARTHEST
from benchmarks.evidence.page import claim_row, read_results, write_page
from benchmarks.evidence.verdicts import fit_line, gain, interval, judge

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "docs" / "evidence"
SPREADS = [(1, 0.0), (2, 4e-4), (3, -4e-4)]


def results(**arms):
    """Make results of three seeds from pairs of reverse KL and accuracy."""
    return {
        arm: {seed: {"reverse_kl": nats, "accuracy": right} for seed, (nats, right) in runs.items()}
        for arm, runs in arms.items()
    }


def test_an_interval_is_that_of_students_t():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert found.error == pytest.approx(1 / math.sqrt(3))


def test_one_seed_tells_nothing():
    found = interval([1.0])
    assert math.isinf(found.half)
    assert judge(found) == "too few seeds"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9, 1.0, 1.1], "holds"),
        ([-0.9, -1.0, -1.1], "does not hold"),
        ([-1.0, 1.0, 0.5], "within noise"),
        ([1.0, 1.1], "too few seeds"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(values, verdict):
    assert judge(interval(values)) == verdict


def test_gains_are_paired_by_seed_and_positive_where_better():
    found = results(
        good={1: (0.1, 0.9), 2: (0.2, 0.8), 4: (9.0, 0.0)},
        bad={1: (0.2, 0.7), 2: (0.4, 0.6), 3: (9.0, 0.0)},
    )
    nats, right = (gain(found, "good", "bad", metric) for metric in ("reverse_kl", "accuracy"))
    assert nats.values == pytest.approx([math.log(2)] * 2)
    assert right.values == pytest.approx([0.2] * 2)
    assert gain(found, "good", "missing", "accuracy") is None


def test_a_straight_line_holds_and_a_bent_one_does_not():
    noise = {seed: {n: e * (n - 7) ** 2 for n in FARTHEST} for seed, e in SPREADS}
    straight = {s: {n: 1 - 0.05 * n + e for n, e in noise[s].items()} for s in noise}
    bent = {s: {n: 1 - 0.004 * n**2 + e for n, e in noise[s].items()} for s in noise}
    assert fit_line(straight).verdict == "holds"
    assert fit_line(straight).slope.mean == pytest.approx(-0.05, abs=1e-3)
    line = fit_line(bent)
    assert line.verdict == "does not hold"
    assert line.bend.mean == pytest.approx(0.004 * 8**2 / 4, abs=1e-3)


def test_every_claim_names_arms_that_exist_and_differ():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    for claim in CLAIMS:
        assert ARMS[claim.better] != ARMS[claim.worse]
        assert ARMS[claim.better].tokens == ARMS[claim.worse].tokens, "tokens must match"
    for count, arm in FARTHEST.items():
        assert ARMS[arm].stages == (count,)


def test_a_claims_numbers_are_those_of_its_arms():
    runs = {seed: (0.5 * seed, 0.5) for seed in (1, 2, 3)}
    worse = {seed: (1.0 * seed, 0.25) for seed in (1, 2, 3)}
    row = claim_row(results(base=runs, random_init=worse), CLAIMS[0])
    assert row["ratio"] == pytest.approx(0.5)
    assert row["accuracy"] == pytest.approx(0.25)
    assert row["verdict"] == "holds"


def make_results(folder, seeds=(1, 2, 3)):
    """Write results of every arm that differ by arm and seed."""
    folder.mkdir(parents=True)
    for place, name in enumerate(ARMS):
        for seed in seeds:
            nats, right = 0.2 + 0.05 * place + 0.01 * seed, 0.9 - 0.02 * place - 0.003 * seed**2
            values = {
                "name": name,
                "seed": seed,
                "layout": "AM",
                "tokens": 8,
                "reverse_kl": nats,
                "accuracy": right,
                "log_likelihood": -nats,
                "processor_seconds": 1.5,
                "kinds": {"add": right, "sort": right},
            }
            (folder / f"{name}-{seed}.json").write_text(json.dumps(values))
    for seed in seeds:
        orders = [list(range(12)), [*range(6), 7, 6, *range(8, 12)], list(range(11, -1, -1))]
        named = zip(("replace_one_at_0", "replace_one", "leave_one_out"), orders, strict=True)
        ranked = {"name": "importance", "seed": seed, "rankings": dict(named)}
        ranked["rank_correlation"] = 0.9
        (folder / f"importance-{seed}.json").write_text(json.dumps(ranked))
        points = [
            {
                "weight": w,
                "accuracy": 0.5 + w / 10 + seed / 100,
                "standard_error": 0.1,
                "reverse_kl": 0.3,
            }
            for w in MERGE_WEIGHTS
        ]
        merged = {"name": "sft_merge", "seed": seed, "points": points, "further": points[0]}
        (folder / f"sft_merge-{seed}.json").write_text(json.dumps(merged))


def test_the_page_is_whole_and_the_same_twice(tmp_path):
    make_results(tmp_path / "runs")
    pages = []
    for out in (tmp_path / "one", tmp_path / "two"):
        write_page(tmp_path / "runs", out)
        pages.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert pages[0] == pages[1]
    text = pages[0]["README.md"].decode()
    assert "$" not in text
    for claim in CLAIMS:
        assert claim.words in text
    for name in ("claims", "decay", "ranks", "merge"):
        assert pages[0][f"{name}.svg"].startswith(b"<svg")
        assert f"({name}.svg)" in text
        assert len(pages[0][f"{name}.csv"].splitlines()) > 3


def test_the_page_in_the_docs_is_what_its_results_say(tmp_path):
    write_page(EVIDENCE / "runs", tmp_path)
    for path in sorted(tmp_path.iterdir()):
        kept = (EVIDENCE / path.name).read_bytes()
        assert path.read_bytes() == kept, f"{path.name}: run python -m benchmarks.evidence page"


def test_the_docs_hold_what_the_papers_claims_ask_for_with_three_seeds_or_more():
    found = read_results(EVIDENCE / "runs")
    asked = {arm for claim in CLAIMS if claim.of_paper for arm in (claim.better, claim.worse)}
    for name in [*asked, *DECAY.values(), "importance", "sft_merge"]:
        assert len(found[name]) >= 3, name
    for name, arm in ARMS.items():
        for result in found[name].values():
            assert result["sha256"] == arm.sha256(), f"{name}: the arm was changed since"
