"""The report of several runs side by side: outcomes, layouts, score against speed, recipes."""

import difflib
import math
from collections.abc import Sequence

from hybridize.core.layout import Layout, explain_letters
from hybridize.report import units
from hybridize.report.blocks import Block, Figure, Missing, Paragraph, Report, Section, Verbatim
from hybridize.report.figures import layers, scores
from hybridize.report.models import (
    ModelFacts,
    headline,
    list_models,
    relative_speed,
    score_share,
    stated_context,
    verdict_of,
)
from hybridize.report.rows import mark_frontier, point_label
from hybridize.report.run_data import RunData
from hybridize.report.tables import Cell, Column, Row, Table


def comparison_report(runs: Sequence[RunData]) -> Report:
    """Arrange several runs on one page, in the order given."""
    names = unique_names(runs)
    named = list(zip(names, runs, strict=True))
    verdicts = tuple(Paragraph(f"{name}: {verdict_of(run)}") for name, run in named)
    return Report(
        name=" / ".join(names),
        verdict=_best_words(named),
        first=(_outcomes(named), *_pareto(named)),
        sections=(
            Section("verdicts", "Verdicts", verdicts),
            Section("layouts", "Layouts", _layouts(named)),
            Section("scores", "Scores by kind", _kinds(named)),
            Section("recipes", "Differences of the recipes", _recipes(named)),
        ),
    )


def unique_names(runs: Sequence[RunData]) -> tuple[str, ...]:
    """Name each run; runs of the same name are told apart by their folders, then by a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [run.path.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({position})" for position, name in enumerate(names, start=1)]
    return tuple(names)


def _best_words(named: Sequence[tuple[str, RunData]]) -> str:
    found: list[tuple[float, float, str, int | None]] = []
    for name, run in named:
        model = headline(run)
        kept = None if model is None else score_share(model, list_models(run)[0])
        if kept is not None and model is not None:
            found.append((*kept, name, model.num_converted))
    if not found:
        return "None of these runs has an evaluated student yet."
    found.sort(key=lambda entry: -entry[0])
    share, error, name, num_converted = found[0]
    words = (
        f"{name} keeps most: {units.ratio_text(share)} ± {error:.2f} of its teacher's score "
        f"with {num_converted} layers converted"
    )
    near = [entry[2] for entry in found[1:] if share - entry[0] <= math.hypot(error, entry[1])]
    if near:
        words += f"; {', '.join(near)} cannot be told apart from it within one standard error"
    return f"{words}."


def _outcomes(named: Sequence[tuple[str, RunData]]) -> Table:
    rows: list[Row] = []
    for name, run in named:
        teacher, model = list_models(run)[0], headline(run)
        row: dict[str, Cell] = {"run": name, "teacher": (run.teacher or {}).get("name")}
        if model is not None:
            share, context = score_share(model, teacher), stated_context(run)
            row |= {
                "model": model.name,
                "converted": model.num_converted,
                "tokens": model.tokens,
                "score": model.score,
                "score_standard_error": model.score_error,
                "score_share": share[0] if share else None,
                "score_share_standard_error": share[1] if share else None,
                "relative_decode_speed": (
                    None if context is None else relative_speed(model, teacher, context)
                ),
                "context_tokens": context,
                "batch": (run.bench or {}).get("batch"),
            }
        rows.append(row)
    columns = (
        Column("run", "run"),
        Column("teacher", "teacher"),
        Column("model", "model"),
        Column("converted", "converted", "count", unit="layers"),
        Column("tokens", "tokens", "tokens"),
        Column("score", "mean score", "number", error="score_standard_error"),
        Column("score_share", "of its teacher's", "ratio", error="score_share_standard_error"),
        Column("relative_decode_speed", "decode, teacher = 1", "ratio"),
        Column("context_tokens", "context", "count", unit="tokens"),
        Column("batch", "batch", "count"),
    )
    return Table("runs", "What each run ends in", columns, tuple(rows))


def _pareto(named: Sequence[tuple[str, RunData]]) -> tuple[Block, ...]:
    contexts = [
        {context for model in list_models(run) for context in model.speed} for _, run in named
    ]
    common = max(set.intersection(*contexts), default=None)
    rows = [
        row
        for name, run in named
        for model in list_models(run)
        if common is not None and (row := _point(name, run, model, common)) is not None
    ]
    if len(rows) < 2 or common is None:
        return (Missing("Score against speed needs eval/ and bench/ at a context all runs share."),)
    columns = (
        Column("model", "run and model"),
        Column("tokens", "tokens", "tokens"),
        Column("score", "mean score", "number", error="standard_error"),
        Column("relative_speed", "decode speed, teacher = 1", "ratio"),
        Column("context_tokens", "context", "count", unit="tokens"),
        Column("batch", "batch", "count"),
        Column("on_frontier", "on the frontier"),
    )
    caption = (
        "Up is better, right is faster than the run's own teacher. Each point is a measured model "
        "with its tokens; bars are one standard error; the dotted line joins the models that no "
        f"other one beats in both. Load: context {units.count_text(common)} tokens; batch as in "
        "the table."
    )
    table = Table("pareto", "Score against speed", columns, mark_frontier(rows))
    return (Figure("pareto", caption, table, scores.pareto),)


def _point(name: str, run: RunData, model: ModelFacts, context: int) -> dict[str, Cell] | None:
    teacher = list_models(run)[0]
    speed = relative_speed(model, teacher, context)
    if speed is None or model.score is None:
        return None
    return {
        "model": f"{name} {model.name}",
        "label": f"{name} {point_label(model)}",
        "tokens": model.tokens,
        "score": model.score,
        "standard_error": model.score_error,
        "relative_speed": speed,
        "context_tokens": context,
        "batch": (run.bench or {}).get("batch"),
        "is_teacher": model.name == "teacher",
    }


def _layouts(named: Sequence[tuple[str, RunData]]) -> tuple[Block, ...]:
    rows: list[Row] = []
    for name, run in named:
        model = headline(run)
        if model is not None and model.layout is not None:
            rows.append(
                {
                    "model": name,
                    "converted": model.num_converted,
                    "num_layers": model.layout.num_layers,
                    "layout": str(model.layout),
                }
            )
    if not rows:
        return (Missing("None of these runs has a finished student yet."),)
    columns = (
        Column("model", "run"),
        Column("converted", "converted", "count", unit="layers"),
        Column("num_layers", "of", "count", unit="layers"),
        Column("layout", "layout", "strip"),
    )
    letters = explain_letters(Layout.parse(str(row["layout"])) for row in rows)
    caption = f"The last layout of each run, a cell per layer, counted from 0: {letters}."
    table = Table("layouts", "Layouts", columns, tuple(rows))
    return (Figure("layout-strips", caption, table, layers.layout_strips),)


def _kinds(named: Sequence[tuple[str, RunData]]) -> tuple[Block, ...]:
    found: dict[str, dict[str, Cell]] = {}
    columns = [Column("kind", "kind")]
    for position, (name, run) in enumerate(named, start=1):
        model = headline(run)
        if model is None or model.evaluation is None:
            continue
        key = f"accuracy_{position}"
        columns.append(Column(key, name, "number", error=f"{key}_standard_error"))
        for kind, score in model.evaluation.get("kinds", {}).items():
            row = found.setdefault(kind, {"kind": kind})
            row |= {key: score["accuracy"], f"{key}_standard_error": score["standard_error"]}
    if not found:
        return (Missing("No student of these runs has been evaluated yet."),)
    return (Table("kinds", "Accuracy by kind", tuple(columns), tuple(found.values())),)


def _recipes(named: Sequence[tuple[str, RunData]]) -> tuple[Block, ...]:
    first_name, first = named[0]
    blocks: list[Block] = []
    for name, run in named[1:]:
        texts = [one.resolved_recipe or one.recipe for one in (first, run)]
        if texts[0] is None or texts[1] is None:
            blocks.append(Missing(f"{first_name} and {name}: one has no recipe."))
            continue
        lines = difflib.unified_diff(
            texts[0].splitlines(), texts[1].splitlines(), first_name, name, n=0, lineterm=""
        )
        changed = "\n".join(line for line in lines if not line.startswith("@@"))
        if changed:
            blocks.append(Verbatim(f"{first_name} against {name}", changed))
        else:
            blocks.append(Paragraph(f"{first_name} and {name} have the same recipe."))
    return tuple(blocks)
