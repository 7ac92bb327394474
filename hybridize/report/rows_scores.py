"""The tables of scores: by kind, against converted layers, likelihood beside accuracy, merge."""

import math

from hybridize.core.ranking import Ranked, find_disagreements
from hybridize.report.models import ModelFacts, headline, list_models
from hybridize.report.rows import point_label
from hybridize.report.run_data import RunData
from hybridize.report.tables import Cell, Column, Row, Table

SIGNIFICANT_ERRORS = 2.0
"""A loss counts as significant from this many standard errors of the difference."""


def scores_table(run: RunData) -> Table:
    """List every model and kind of problem that was evaluated."""
    rows: list[Row] = []
    for model in _evaluated(run):
        kinds = (model.evaluation or {}).get("kinds", {})
        for kind, found in [*kinds.items(), ("mean", (model.evaluation or {}).get("overall"))]:
            if found:
                row = {"model": model.name, "converted": model.num_converted, "kind": kind}
                rows.append({**row, **found})
    columns = (
        Column("model", "model"),
        Column("converted", "converted", "count", unit="layers"),
        Column("kind", "kind"),
        Column("accuracy", "accuracy", "number", error="standard_error"),
        Column("num_problems", "problems", "count"),
        Column("log_likelihood", "log-likelihood", "number", unit="nats per token"),
        Column("mean_tokens", "mean length", "number", unit="tokens"),
        Column("finished", "finished in time", "number"),
    )
    return Table("scores", "Everything measured of each model and kind", columns, tuple(rows))


def score_matrix_table(run: RunData) -> Table:
    """Put the kinds under each other and the models beside each other."""
    columns = [Column("kind", "kind")]
    rows: dict[str, dict[str, Cell]] = {}
    for entry in scores_table(run).rows:
        kind, model = str(entry["kind"]), str(entry["model"])
        if all(column.key != model for column in columns):
            columns.append(Column(model, model, "number", error=f"{model}_standard_error"))
        row = rows.setdefault(kind, {"kind": kind})
        row |= {model: entry["accuracy"], f"{model}_standard_error": entry.get("standard_error")}
    return Table("accuracy", "Accuracy of all models", tuple(columns), tuple(rows.values()))


def score_bars_table(run: RunData, model: ModelFacts | None = None) -> Table | None:
    """Compare teacher and a student by kind, the largest loss first; None if one lacks.

    Args:
        model: the student; None is the one the verdict speaks of.
    """
    teacher, student = list_models(run)[0], model or headline(run)
    if student is None or student.evaluation is None or teacher.evaluation is None:
        return None
    rows: list[dict[str, Cell]] = []
    for kind, found in student.evaluation.get("kinds", {}).items():
        base = teacher.evaluation.get("kinds", {}).get(kind)
        if base is None:
            continue
        loss = base["accuracy"] - found["accuracy"]
        loss_error = math.hypot(base["standard_error"] or 0, found["standard_error"] or 0)
        rows.append(
            {
                "kind": kind,
                "model": student.name,
                "teacher": base["accuracy"],
                "teacher_error": base["standard_error"],
                "student": found["accuracy"],
                "student_error": found["standard_error"],
                "num_problems": found["num_problems"],
                "loss": loss,
                "loss_error": loss_error,
                "significant": loss > 0 and loss > SIGNIFICANT_ERRORS * loss_error,
            }
        )
    rows.sort(key=lambda row: (-float(row["loss"] or 0), str(row["kind"])))
    columns = (
        Column("kind", "kind"),
        Column("teacher", "teacher", "number", error="teacher_error"),
        Column("student", student.name, "number", error="student_error"),
        Column("loss", "loss", "number", error="loss_error"),
        Column("num_problems", "problems", "count"),
        Column("significant", f"loss above {SIGNIFICANT_ERRORS:.0f} standard errors"),
    )
    return (
        Table("score-bars", f"Teacher and {student.name}", columns, tuple(rows)) if rows else None
    )


def score_by_converted_table(run: RunData) -> Table:
    """List accuracy by kind over the teacher and the stages; SFT and merge are left out."""
    stages = [model for model in _evaluated(run) if model.name not in ("sft", "merge")]
    names = {model.name for model in stages}
    rows = tuple(row for row in scores_table(run).rows if row["model"] in names)
    columns = (
        Column("model", "model"),
        Column("converted", "converted", "count", unit="layers"),
        Column("kind", "kind"),
        Column("accuracy", "accuracy", "number", error="standard_error"),
    )
    rows = tuple(row for row in rows if row["converted"] is not None)
    return Table("score-by-converted", "Score by converted layers", columns, rows)


def likelihood_table(run: RunData) -> Table:
    """Put mean log-likelihood beside generated accuracy, with the rank under each."""
    found = [
        (model, overall["log_likelihood"], overall["accuracy"], overall.get("standard_error"))
        for model in _evaluated(run)
        if (overall := (model.evaluation or {}).get("overall"))
        and overall.get("log_likelihood") is not None
    ]
    rows: tuple[Row, ...] = tuple(
        {
            "model": model.name,
            "label": point_label(model),
            "is_teacher": model.name == "teacher",
            "log_likelihood": likelihood,
            "accuracy": accuracy,
            "standard_error": error,
            "rank_by_likelihood": 1 + sum(other[1] > likelihood for other in found),
            "rank_by_accuracy": 1 + sum(other[2] > accuracy for other in found),
        }
        for model, likelihood, accuracy, error in found
    )
    columns = (
        Column("model", "model"),
        Column("log_likelihood", "log-likelihood", "number", unit="nats per token"),
        Column("accuracy", "accuracy", "number", error="standard_error"),
        Column("rank_by_likelihood", "rank by likelihood", "count"),
        Column("rank_by_accuracy", "rank by accuracy", "count"),
    )
    return Table("likelihood", "Log-likelihood and generated accuracy", columns, rows)


def disagreements(rows: tuple[Row, ...]) -> list[tuple[str, str, bool]]:
    """Find pairs that likelihood and accuracy order differently.

    Each is (better by likelihood, better by accuracy, whether the two accuracies differ by more
    than the standard error of their difference).
    """
    models = [
        Ranked(
            str(row["model"]),
            float(row["log_likelihood"] or 0),
            float(row["accuracy"] or 0),
            float(row["standard_error"] or 0),
        )
        for row in rows
    ]
    return [
        (one.by_likelihood, one.by_accuracy, one.is_clear) for one in find_disagreements(models)
    ]


def merge_table(run: RunData) -> Table | None:
    """Put the merged model beside its members, with their weights; None without a merge."""
    if run.merge is None:
        return None
    weights = dict(zip(run.merge["models"], run.merge["weights"], strict=True))
    models = {model.name: model for model in list_models(run)}
    members = [name for name in [*weights, "merge"] if name in models]
    kinds = list(
        dict.fromkeys(
            kind for name in members for kind in (models[name].evaluation or {}).get("kinds", {})
        )
    )
    rows: list[Row] = []
    for name in members:
        model = models[name]
        row: dict[str, Cell] = {"model": name, "weight": weights.get(name), "score": model.score}
        row["score_standard_error"] = model.score_error
        for kind in kinds:
            found = (model.evaluation or {}).get("kinds", {}).get(kind, {})
            row[kind] = found.get("accuracy")
            row[f"{kind}_standard_error"] = found.get("standard_error")
        rows.append(row)
    columns = (
        Column("model", "model"),
        Column("weight", "weight", "number"),
        Column("score", "mean score", "number", error="score_standard_error"),
        *(Column(kind, kind, "number", error=f"{kind}_standard_error") for kind in kinds),
    )
    return Table("merge", "The merge and its members", columns, tuple(rows))


def sweep_table(run: RunData) -> Table | None:
    """List scores over the weight of the first of two merged models; None where none were tried."""
    if run.sweep is None:
        return None
    chosen = dict(
        zip((run.merge or {}).get("models", ()), (run.merge or {}).get("weights", ()), strict=True)
    )
    total = sum(chosen.values()) or 1.0
    merged = chosen.get(run.sweep["models"][0], math.nan) / total
    rows: tuple[Row, ...] = tuple(
        {
            "weight": tried["weight"],
            "kind": kind,
            "accuracy": found["accuracy"],
            "standard_error": found["standard_error"],
            "num_problems": found["num_problems"],
            "is_merge": math.isclose(tried["weight"], merged),
        }
        for tried in run.sweep["tried"]
        for kind, found in {**tried["kinds"], "mean": tried["overall"]}.items()
    )
    columns = (
        Column("weight", f"weight of {run.sweep['models'][0]}", "number"),
        Column("kind", "kind"),
        Column("accuracy", "accuracy", "number", error="standard_error"),
        Column("num_problems", "problems", "count"),
        Column("is_merge", "weight of the merge"),
    )
    return Table("merge-sweep", "Score over the weight of the merge", columns, rows)


def _evaluated(run: RunData) -> list[ModelFacts]:
    return [model for model in list_models(run) if model.evaluation is not None]
