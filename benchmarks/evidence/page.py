"""Write docs/evidence: the table of claims, the arms, the figures, and a CSV of each."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.evidence import figures
from benchmarks.evidence.arms import ARMS, MERGE_WEIGHTS, PROBE_STEPS, PROBE_TOKENS, SFT_TOKENS
from benchmarks.evidence.claims import CLAIMS, DECAY, FARTHEST, Claim
from benchmarks.evidence.verdicts import Results, fit_line, gain, interval, judge
from benchmarks.machine import table
from hybridize.core.artifacts import write_text
from hybridize.core.quantities import short_count
from hybridize.report.figures import layers, merge, scores, svg
from hybridize.report.tables import Row

WIDTH = 840


def read_results(folder: Path) -> Results:
    """Read all results: arm -> seed -> what came out."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        found[result["name"]][result["seed"]] = result
    return dict(found)


def write_page(results: Path, out: Path) -> None:
    """Write README.md, figures and tables of what was run."""
    found = read_results(results)
    claims = [row for claim in CLAIMS if (row := claim_row(found, claim)) is not None]
    _write_csv(out / "claims.csv", claims)
    _write_figure(out / "claims.svg", figures.differences(claims, WIDTH))
    parts = {
        "tokens": short_count(ARMS["base"].tokens),
        "steps": PROBE_STEPS,
        "step_tokens": f"{PROBE_TOKENS:,}",
        "of_paper": claims_part([row for row in claims if row["of_paper"]]),
        "others": claims_part([row for row in claims if not row["of_paper"]]),
        "decay": decay_part(found, out),
        "ranks": ranks_part(found, out),
        "merge": merge_part(found, out),
        "arms": arms_part(found, out),
    }
    template = Path(__file__).with_name("page.md").read_text("utf-8")
    write_text(out / "README.md", Template(template).substitute(parts))


def claim_row(found: Results, claim: Claim) -> Row | None:
    """Return what a claim comes to; None where an arm has no result."""
    ratio = gain(found, claim.better, claim.worse, "reverse_kl")
    right = gain(found, claim.better, claim.worse, "accuracy")
    if ratio is None or right is None:
        return None
    verdict = judge(ratio if claim.metric == "reverse_kl" else right)
    return {
        "claim": claim.name,
        "says": claim.words,
        "of_paper": claim.of_paper,
        "arm": claim.better,
        "other": claim.worse,
        "decides": claim.metric,
        "verdict": verdict,
        "seeds": len(ratio.values),
        "tokens": ARMS[claim.better].tokens,
        "ratio": math.exp(-ratio.mean),
        "ratio_low": math.exp(-ratio.high),
        "ratio_high": math.exp(-ratio.low),
        "accuracy": right.mean,
        "accuracy_low": right.low,
        "accuracy_high": right.high,
        "guess": "" if verdict == "holds" else claim.guess,
    }


def claims_part(rows: Sequence[Row]) -> str:
    """Return the table of claims, and why those that do not hold may not."""
    head = ("claim", "arms", "divergence, times", "accuracy, plus", "seeds", "verdict")
    cells = [
        (
            f"{row['claim']}: {row['says']}",
            f"`{row['arm']}` / `{row['other']}`",
            _bold(_ratio(row), row["decides"] == "reverse_kl"),
            _bold(_gain(row), row["decides"] == "accuracy"),
            row["seeds"],
            f"**{row['verdict']}**",
        )
        for row in rows
    ]
    guesses = [f"- *{row['claim']}*: {row['guess']}" for row in rows if row["guess"]]
    return "\n".join([table(head, cells), "", *guesses]).strip()


def _bold(text: str, decides: bool) -> str:
    return f"**{text}**" if decides else text


def _ratio(row: Row) -> str:
    return "{ratio:.2f} ({ratio_low:.2f} to {ratio_high:.2f})".format(**row)


def _gain(row: Row) -> str:
    return "{accuracy:+.3f} ({accuracy_low:+.3f} to {accuracy_high:+.3f})".format(**row)


def decay_part(found: Results, out: Path) -> str:
    """Draw accuracy against converted layers, and say how straight the line is."""
    runs = {count: found[arm] for count, arm in FARTHEST.items()}
    seeds = sorted(set.intersection(*(set(run) for run in runs.values())))
    rows: list[Row] = []
    for count, run in runs.items():
        for kind in ["mean", *run[seeds[0]]["kinds"]]:
            of = interval([{**run[s]["kinds"], "mean": run[s]["accuracy"]}[kind] for s in seeds])
            rows.append(
                {
                    "kind": kind,
                    "converted": count,
                    "accuracy": of.mean,
                    "standard_error": of.error,
                }
            )
    _write_csv(out / "decay.csv", rows)
    _write_figure(out / "decay.svg", scores.score_by_converted(rows, WIDTH))
    head = ("converted", "a layer", "middle of a parabola, off its chord", "straight", "verdict")
    lines = []
    for counts in (DECAY, FARTHEST):
        whole = sorted(set.intersection(*(set(runs[n]) for n in counts)))
        line = fit_line({s: {n: runs[n][s]["accuracy"] for n in counts} for s in whole})
        slope, bend = line.slope, line.bend
        lines.append(
            (
                f"{min(counts)} to {max(counts)}",
                f"{slope.mean:+.3f} ({slope.low:+.3f} to {slope.high:+.3f})",
                f"{bend.mean:+.3f} ({bend.low:+.3f} to {bend.high:+.3f})",
                f"{line.share:.0%} of the variance of means",
                f"**{line.verdict}**",
            )
        )
    return table(head, lines)


def ranks_part(found: Results, out: Path) -> str:
    """Draw MMR's ranks at 0 and after its steps, and say what the steps change."""
    ranked, cut = found["importance"], ARMS["base"].stages[0]
    rows: list[Row] = []
    moved, others = [], []
    for seed, result in sorted(ranked.items()):
        orders = result["rankings"]
        before, after = orders["replace_one_at_0"], orders["replace_one"]
        moved.append(len(set(after[:cut]) - set(before[:cut])))
        others.append(len(set(after[:cut]) - set(orders["leave_one_out"][:cut])))
        for layer in range(len(after)):
            rows.append(
                {
                    "stage": f"h{cut}, seed {seed}",
                    "layer": layer,
                    "rank_before": before.index(layer) + 1,
                    "rank_after": after.index(layer) + 1,
                    "cut": cut,
                    "steps": PROBE_STEPS,
                }
            )
    _write_csv(out / "ranks.csv", rows)
    _write_figure(out / "ranks.svg", layers.rank_bumps(rows, WIDTH))
    same = [result["rank_correlation"] for _, result in sorted(ranked.items())]
    return (
        f"Rank correlation (Spearman) of MMR's scores at 0 and after {PROBE_STEPS} steps: "
        f"{', '.join(f'{value:.2f}' for value in same)} by seed. Of the {cut} layers to convert, "
        f"the steps exchange {', '.join(map(str, moved))}; {', '.join(map(str, others))} differ "
        "from those of leave-one-out. What the choices are worth is told by `replace_one` above."
    )


def merge_part(found: Results, out: Path) -> str:
    """Draw the sweep of merge weights, and compare its ends and middle."""
    runs = found["sft_merge"]
    columns = {
        weight: {s: _point(run["points"], weight) for s, run in runs.items()}
        for weight in MERGE_WEIGHTS
    }
    rows: list[Row] = [
        {
            "weight": weight,
            "kind": f"seed {seed}",
            **{key: point[key] for key in ("accuracy", "standard_error", "reverse_kl")},
            "is_merge": False,
        }
        for weight, column in columns.items()
        for seed, point in sorted(column.items())
    ]
    for weight, column in columns.items():
        right, nats = (
            interval([point[key] for point in column.values()])
            for key in ("accuracy", "reverse_kl")
        )
        rows.append(
            {
                "weight": weight,
                "kind": "mean",
                "accuracy": right.mean,
                "standard_error": right.error,
                "reverse_kl": nats.mean,
                "is_merge": False,
            }
        )
    _write_csv(out / "merge.csv", rows)
    _write_figure(out / "merge.svg", merge.merge_sweep(rows, WIDTH))
    further = {seed: run["further"] for seed, run in runs.items()}
    pairs = {
        "fine-tuned against where it started": (columns[1.0], columns[0.0]),
        "half of each against fine-tuned": (columns[0.5], columns[1.0]),
        "fine-tuned against as many more tokens of distillation": (columns[1.0], further),
    }
    lines = []
    for words, (one, other) in pairs.items():
        right = gain({"one": one, "other": other}, "one", "other", "accuracy")
        nats = gain({"one": one, "other": other}, "one", "other", "reverse_kl")
        assert right is not None and nats is not None
        ratio = f"{math.exp(-nats.mean):.2f}"
        ratio += f" ({math.exp(-nats.high):.2f} to {math.exp(-nats.low):.2f})"
        better = f"{right.mean:+.3f} ({right.low:+.3f} to {right.high:+.3f})"
        lines.append((words, ratio, f"**{better}**", f"**{judge(right)}**"))
    head = ("is better", "divergence, times", "accuracy, plus", "verdict")
    return (
        f"The model of `base`, fine-tuned on {short_count(SFT_TOKENS)} tokens of traces, merged "
        f"with where it started. {len(runs)} seeds; `run --arm sft_merge`.\n\n{table(head, lines)}"
    )


def _point(points: Sequence[dict[str, Any]], weight: float) -> dict[str, Any]:
    return next(point for point in points if point["weight"] == weight)


def arms_part(found: Results, out: Path) -> str:
    """Return the table of all arms."""
    keys = ("layout", "tokens", "reverse_kl", "accuracy", "log_likelihood", "processor_seconds")
    lines, rows = [], []
    for name, arm in ARMS.items():
        runs = [run for _, run in sorted(found.get(name, {}).items())]
        if not runs:
            continue
        rows += [{"arm": name, "seed": run["seed"], **{k: run[k] for k in keys}} for run in runs]
        nats, right, seconds = (
            interval([run[key] for run in runs])
            for key in ("reverse_kl", "accuracy", "processor_seconds")
        )
        lines.append(
            (
                f"`{name}`",
                short_count(arm.tokens),
                f"{nats.mean:.3f} ({', '.join(f'{value:.3f}' for value in nats.values)})",
                f"{right.mean:.3f} ({', '.join(f'{value:.2f}' for value in right.values)})",
                f"{seconds.mean:.0f}",
            )
        )
    _write_csv(out / "arms.csv", rows)
    head = ("arm", "tokens", "reverse KL, nats a token (each seed)", "accuracy (each seed)", "s")
    return table(head, lines)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_figure(path: Path, drawn: str) -> None:
    write_text(path, svg.standalone(drawn))
