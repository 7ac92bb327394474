"""The tables of a report, computed from a run: one function per table, rows in reading order."""

from collections.abc import Sequence

from hybridize.core.importance import Importance
from hybridize.report import units
from hybridize.report.models import (
    ModelFacts,
    headline,
    list_models,
    relative_speed,
    score_share,
    stated_context,
    verdict_of,
    whole_agreement,
)
from hybridize.report.run_data import RunData
from hybridize.report.tables import Cell, Column, Row, Table

METRIC_UNITS = {
    "kl": "nats per token",
    "reverse_kl": "nats per token",
    "accuracy": "share of problems lost",
}


def layouts_table(run: RunData) -> Table:
    """List the layout of each model whose layout is known."""
    rows: list[Row] = [
        {
            "model": model.name,
            "state": model.state,
            "converted": model.num_converted,
            "num_layers": model.layout.num_layers,
            "tokens": model.tokens,
            "layout": str(model.layout),
            "new_layers": " ".join(str(layer) for layer in model.new_layers),
        }
        for model in list_models(run)
        if model.layout is not None
    ]
    columns = (
        Column("model", "model"),
        Column("state", "state"),
        Column("converted", "converted", "count", unit="layers"),
        Column("num_layers", "of", "count", unit="layers"),
        Column("tokens", "tokens since the teacher", "tokens"),
        Column("layout", "layout", "strip"),
        Column("new_layers", "converted here (layer, from 0)"),
    )
    return Table("layouts", "Layouts", columns, tuple(rows))


def models_table(run: RunData) -> Table:
    """Compare all models that exist: score, speed and cache beside the teacher's."""
    models = [model for model in list_models(run) if model.state == "done"]
    context = stated_context(run)
    batch = (run.bench or {}).get("batch")
    title = "Models of this run"
    if context is not None:
        title += f"; speed and cache at context {units.count_text(context)} tokens"
    if context is not None and batch is not None:
        title += f", batch {batch}"
    columns = (
        Column("model", "model"),
        Column("converted", "converted", "count", unit="layers"),
        Column("tokens", "tokens", "tokens"),
        Column("score", "mean score", "number", error="score_standard_error"),
        Column("score_share", "of the teacher's", "ratio", error="score_share_standard_error"),
        Column("decode_tokens_per_second", "decode", "number", unit="tokens/s"),
        Column("relative_decode_speed", "decode, teacher = 1", "ratio"),
        Column("cache_bytes", "cache", "bytes"),
    )
    rows = tuple(_model_row(model, models[0], context) for model in models)
    return Table("models", title, columns, rows)


def _model_row(model: ModelFacts, teacher: ModelFacts, context: int | None) -> Row:
    share = score_share(model, teacher)
    speed = {} if context is None else model.speed.get(context, {})
    return {
        "model": model.name,
        "converted": model.num_converted,
        "tokens": model.tokens,
        "score": model.score,
        "score_standard_error": model.score_error,
        "score_share": share[0] if share else None,
        "score_share_standard_error": share[1] if share and model is not teacher else None,
        "decode_tokens_per_second": speed.get("decode_tokens_per_second"),
        "relative_decode_speed": (
            None if context is None else relative_speed(model, teacher, context)
        ),
        "cache_bytes": speed.get("cache_bytes"),
    }


def verdict_table(run: RunData) -> Table:
    """Hold the verdict and the numbers it is made of."""
    model, models = headline(run), list_models(run)
    facts: list[tuple[str, Cell]] = [("verdict", verdict_of(run))]
    if model is not None:
        context, share = stated_context(run), score_share(model, models[0])
        facts += [("model", model.name), ("converted_layers", model.num_converted)]
        facts += [("num_layers", model.layout.num_layers if model.layout else None)]
        facts += [("score_share", share[0] if share else None)]
        facts += [("score_share_standard_error", share[1] if share else None)]
        agreed = whole_agreement(run, model) or {}
        top1 = agreed.get("top1")
        facts += [("same_top_token_percent", None if top1 is None else 100 * top1)]
        facts += [("reverse_kl", agreed.get("reverse_kl"))]
        facts += [("batch", (run.bench or {}).get("batch")), ("context_tokens", context)]
        for measured in sorted(set(model.speed) & set(models[0].speed)):
            speed = relative_speed(model, models[0], measured)
            facts.append((f"relative_decode_speed_at_{measured}", speed))
    return Table("verdict", "The verdict and its numbers", *fact_columns(facts))


def fact_columns(facts: Sequence[tuple[str, Cell]]) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    """Turn (name, value) pairs into the columns and rows of a two column table."""
    rows: tuple[Row, ...] = tuple({"fact": name, "value": value} for name, value in facts)
    return (Column("fact", "fact"), Column("value", "value")), rows


def pareto_table(run: RunData) -> Table:
    """List score and relative decode speed of the measured models, and mark the frontier.

    Where no student was asked problems, agreement with the teacher stands for the score.
    """
    models = list_models(run)
    context = stated_context(run)
    scored = any(model.score is not None for model in models[1:])
    measure = "mean score (share of problems solved)" if scored else AGREEMENT
    rows: list[dict[str, Cell]] = []
    for model in models:
        speed = None if context is None else relative_speed(model, models[0], context)
        score, error = _quality(run, model, scored)
        if speed is None or score is None:
            continue
        rows.append(
            {
                "model": model.name,
                "tokens": model.tokens,
                "score": score,
                "standard_error": error,
                "measure": measure,
                "relative_speed": speed,
                "context_tokens": context,
                "batch": (run.bench or {}).get("batch"),
                "is_teacher": model is models[0],
                "label": point_label(model),
            }
        )
    columns = (
        Column("model", "model"),
        Column("tokens", "tokens", "tokens"),
        Column("score", measure.partition(" (")[0], "number", error="standard_error"),
        Column("relative_speed", "decode speed, teacher = 1", "ratio"),
        Column("context_tokens", "context", "count", unit="tokens"),
        Column("batch", "batch", "count"),
        Column("on_frontier", "on the frontier"),
    )
    return Table("pareto", "Score against speed", columns, mark_frontier(rows))


AGREEMENT = "the teacher's likeliest token (share of held-out places)"


def _quality(run: RunData, model: ModelFacts, scored: bool) -> tuple[Cell, Cell]:
    """Return the score and its standard error, or the share of places with the same token."""
    if scored:
        return model.score, model.score_error
    if model.name == "teacher":
        return 1.0, None
    agreed = whole_agreement(run, model) or {}
    return agreed.get("top1"), agreed.get("top1_error")


def point_label(model: ModelFacts) -> str:
    """Name a point: the model and the tokens it was trained on."""
    return f"{model.name} · {units.tokens_text(model.tokens)}" if model.tokens else model.name


def mark_frontier(rows: Sequence[dict[str, Cell]]) -> tuple[Row, ...]:
    """Mark the rows that no other row beats in both `score` and `relative_speed`."""

    def beaten(row: dict[str, Cell]) -> bool:
        here = (_number(row, "score"), _number(row, "relative_speed"))
        there = [(_number(other, "score"), _number(other, "relative_speed")) for other in rows]
        return any(x >= here[0] and y >= here[1] and (x, y) != here for x, y in there)

    return tuple({**row, "on_frontier": not beaten(row)} for row in rows)


def importance_table(run: RunData, name: str) -> Table:
    """List the scores of one measurement by layer, and what became of each layer."""
    measured = run.importance[name]
    ranks = {entry.layer: rank for rank, entry in enumerate(measured.ranked(), start=1)}
    converted = _converted_after(run, name)
    rows: tuple[Row, ...] = tuple(
        {
            "source": name,
            "layer": entry.layer,
            "score": entry.score,
            "standard_error": entry.standard_error,
            "score_before": entry.score_before,
            "rank": ranks[entry.layer],
            "converted": entry.layer in converted,
            "tokens": entry.tokens,
            "seconds": entry.seconds,
            "unit": METRIC_UNITS.get(measured.metric, measured.metric),
        }
        for entry in sorted(measured.scores, key=lambda entry: entry.layer)
    )
    unit = METRIC_UNITS.get(measured.metric, measured.metric)
    columns = [
        Column("layer", "layer", "count"),
        Column("score", "importance", "number", error="standard_error", unit=unit),
        Column("rank", "rank, 1 = least important", "count"),
        Column("converted", "converted"),
        Column("tokens", "tokens measured", "tokens"),
        Column("seconds", "time", "seconds"),
    ]
    if any(entry.score_before is not None for entry in measured.scores):
        columns.insert(2, Column("score_before", "before training", "number", unit=unit))
    return Table(f"importance-{name}", importance_title(measured, name), tuple(columns), rows)


def replacements_table(run: RunData) -> Table | None:
    """List the scores of all measurements by replacement under each other; None without one."""
    names = [name for name, found in run.importance.items() if found.method == "replace_one"]
    tables = [importance_table(run, name) for name in names]
    if not tables:
        return None
    rows = tuple(
        {"stage": name.partition("-")[2] or "all stages", **row}
        for name, table in zip(names, tables, strict=True)
        for row in table.rows
    )
    columns = (Column("stage", "before stage"), *tables[0].columns)
    return Table("importance-replace_one", "Replace one layer", columns, rows)


def importance_title(measured: Importance, name: str) -> str:
    """Say in words what was measured."""
    if measured.method == "replace_one":
        stage = name.partition("-")[2]
        return f"Replace one layer{f', before stage {stage}' if stage else ''}"
    what = "the whole layer" if measured.scope == "layer" else "its attention"
    return f"Leave one out: {what}"


def _converted_after(run: RunData, name: str) -> frozenset[int]:
    stage = name.partition("-")[2]
    models = [model for model in list_models(run) if model.layout is not None]
    layout = next((model.layout for model in models if model.name == stage), None)
    layout = layout or (models[-1].layout if models else None)
    return frozenset(layout.converted if layout else ())


def ranks_table(run: RunData) -> Table:
    """Compare the ranks before and after the short distillation of each replacement."""
    rows: list[Row] = []
    stages = {model.name: model for model in list_models(run)}
    for name, measured in run.importance.items():
        pairs = [s for s in measured.scores if s.score_before is not None]
        if measured.method != "replace_one" or not pairs or len(pairs) < len(measured.scores):
            continue
        stage = name.partition("-")[2] or name
        before = sorted(pairs, key=lambda entry: (entry.score_before, entry.layer))
        after = measured.ranked()
        chosen = stages[stage].new_layers if stage in stages else ()
        for rank, entry in enumerate(after, start=1):
            rank_before = before.index(entry) + 1
            rows.append(
                {
                    "stage": stage,
                    "layer": entry.layer,
                    "rank_before": rank_before,
                    "rank_after": rank,
                    "change": rank_before - rank,
                    "score_before": entry.score_before,
                    "score_after": entry.score,
                    "steps": measured.steps,
                    "cut": len(chosen),
                    "chosen": entry.layer in chosen,
                    "correlation": measured.rank_correlation(),
                }
            )
    unit = "nats per token"
    columns = (
        Column("stage", "before stage"),
        Column("layer", "layer", "count"),
        Column("rank_before", "rank at 0 steps", "count"),
        Column("rank_after", "rank after training", "count"),
        Column("change", "change", "count"),
        Column("score_before", "score at 0 steps", "number", unit=unit),
        Column("score_after", "score after training", "number", unit=unit),
        Column("steps", "steps", "count"),
        Column("cut", "to convert", "count", unit="layers"),
        Column("chosen", "converted in this stage"),
        Column("correlation", "rank correlation (Spearman)", "number"),
    )
    return Table("replacement-ranks", "Ranks before and after training", columns, tuple(rows))


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
