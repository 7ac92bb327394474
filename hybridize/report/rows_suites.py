"""The tables of the suites beside `tasks`: paired tests, groups, recall, agreement, diagnosis."""

from collections.abc import Mapping, Sequence

from hybridize.report.run_data import Json, RunData
from hybridize.report.tables import Cell, Column, Row, Table

SIGNIFICANT = 0.05
"""A p-value below this is marked."""


PAIRED_WORDS = (
    "All models answer the same problems, so each is compared with the teacher problem by problem: "
    "the interval is a bootstrap over the problems, p that of McNemar's exact test that both are "
    "right equally often."
)
RECALL_WORDS = (
    "A cell per length of the prompt and depth of the facts in it, stronger where more are found; "
    "a depth of 100 % is the end of the prompt. What a state has forgotten shows at the top right."
)
ERROR_WORDS = (
    "A cell per layer (down) and position, stronger where the residual stream after the layer is "
    "farther from the teacher's, as a share of its size. It grows down the layers; a layer where "
    "it jumps has a mixer that lags, and a row that grows stronger to the right one that forgets."
)
AGREEMENT_WORDS = (
    "KL: how far the next token's distribution is from the teacher's, by position in a held-out "
    "document (completions alone); lower is closer. Same top token: how often both find the same "
    "one most likely. A line that worsens to the right is a memory that does not last."
)
ENTROPY_WORDS = (
    "The same by how sure the teacher is of its next token: left are places where it has no "
    "doubt, right where several tokens would do. A student that differs on the left has lost "
    "something; on the right it may only choose another good token."
)
DIAGNOSIS_WORDS = (
    "Each converted layer: what its mixer adds, what the loss gains without it, how many tokens "
    "it remembers, how full its state is, how far it is from the attention it replaced."
)


def paired_table(run: RunData) -> Table | None:
    """List each model beside the teacher on the same problems; None where nothing was paired."""
    rows: list[Row] = []
    for name, evaluation in run.evaluations.items():
        paired = evaluation.get("paired")
        if not paired:
            continue
        for kind, pair in [("mean", paired["overall"]), *paired["kinds"].items()]:
            significant = pair["p_value"] < SIGNIFICANT
            rows.append({"model": name, "kind": kind, **pair, "significant": significant})
    columns = (
        Column("model", "model"),
        Column("kind", "kind"),
        Column("difference", "difference", "number", error="standard_error"),
        Column("low", "95 % from", "number"),
        Column("high", "to", "number"),
        Column("only_model", "only model right", "count"),
        Column("only_other", "only teacher right", "count"),
        Column("p_value", "p (McNemar)", "number"),
        Column("significant", f"p below {SIGNIFICANT}"),
    )
    title = "Each model beside the teacher, problem by problem"
    return Table("paired", title, columns, tuple(rows)) if rows else None


def groups_table(run: RunData) -> Table | None:
    """List accuracy by difficulty and by length of the prompt; None where nothing was grouped."""
    rows: list[Row] = []
    for name, evaluation in run.evaluations.items():
        rows += [{"model": name, **entry} for entry in evaluation.get("groups", ())]
    columns = (
        Column("model", "model"),
        Column("kind", "kind"),
        Column("by", "by"),
        Column("value", "value", "number"),
        Column("accuracy", "accuracy", "number", error="standard_error"),
        Column("num_problems", "problems", "count"),
    )
    title = "Accuracy by difficulty and by length of the prompt"
    return Table("groups", title, columns, tuple(rows)) if rows else None


def heat_rows(evaluation: Json) -> tuple[Row, ...]:
    """Return the cells of a heat map: one a length and depth; none of another suite.

    An evaluation groups its answers by one label at a time, and by all of them as `cells`.
    """
    return tuple({"model": evaluation["model"], **cell} for cell in evaluation.get("cells", ()))


def recall_table(run: RunData) -> Table | None:
    """List retrieval by length and depth of all models; None where the suite was not run."""
    found = run.suites.get("recall", {})
    rows = tuple(row for evaluation in found.values() for row in heat_rows(evaluation))
    columns = (
        Column("model", "model"),
        Column("prompt_length", "prompt", "count", unit="tokens"),
        Column("depth", "depth", "number"),
        Column("accuracy", "accuracy", "number", error="standard_error"),
        Column("num_problems", "problems", "count"),
    )
    return Table("recall", "Facts found by length and depth", columns, rows) if rows else None


def findings(run: RunData) -> list[str]:
    """List what the diagnoses name."""
    return [
        f"{name}: {text}"
        for name, found in run.suites.get("diagnosis", {}).items()
        for text in found.get("findings", ())
    ]


def agreement_rows(compared: Sequence[Json]) -> tuple[Row, ...]:
    """Return agreement by position of several students."""
    return tuple(
        {"model": one["model"], "position": row["value"], **_without(row, ("by", "value"))}
        for one in compared
        for row in one.get("rows", ())
        if row["by"] == "position"
    )


def agreement_table(run: RunData) -> Table | None:
    """List agreement with the teacher by position; None where the suite was not run."""
    rows = agreement_rows(list(run.suites.get("agreement", {}).values()))
    columns = (
        Column("model", "model"),
        Column("position", "position below", "count", unit="tokens"),
        Column("forward_kl", "KL(teacher || student)", "number", error="forward_kl_error"),
        Column("reverse_kl", "KL(student || teacher)", "number", error="reverse_kl_error"),
        Column("top1", "same top token", "number", error="top1_error"),
        Column("tokens", "tokens", "count"),
    )
    title = "Agreement with the teacher by position"
    return Table("agreement", title, columns, rows) if rows else None


def entropy_table(run: RunData) -> Table | None:
    """List agreement by the teacher's entropy; None where the suite was not run."""
    rows: list[Row] = []
    for name, found in run.suites.get("agreement", {}).items():
        own = [row for row in found.get("rows", ()) if row["by"] == "entropy"]
        bounds = [row["value"] for row in own]
        for group, row in enumerate(own):
            last = f"≥ {bounds[group - 1]:g}" if group else "all"
            label = last if row["value"] is None else f"< {row['value']:g}"
            values = _without(row, ("by", "value"))
            rows.append({"model": name, "group": group, "group_label": label, **values})
    columns = (
        Column("model", "model"),
        Column("group_label", "entropy of the teacher", unit="nats"),
        Column("forward_kl", "KL(teacher || student)", "number", error="forward_kl_error"),
        Column("reverse_kl", "KL(student || teacher)", "number", error="reverse_kl_error"),
        Column("top1", "same top token", "number", error="top1_error"),
        Column("tokens", "tokens", "count"),
    )
    title = "Agreement with the teacher by its entropy"
    return Table("agreement-entropy", title, columns, tuple(rows)) if rows else None


def suite_tables(run: RunData) -> list[Table]:
    """List the scores of every other suite, kinds or tasks down and models across."""
    tables = []
    for suite, found in run.suites.items():
        columns, rows = [Column("kind", "kind")], dict[str, dict[str, Cell]]()
        for model, result in found.items():
            values = _scores_of(result)
            if not values:
                continue
            columns.append(Column(model, model, "number", error=f"{model}_standard_error"))
            for kind, (value, error) in values.items():
                row = rows.setdefault(kind, {"kind": kind})
                row |= {model: value, f"{model}_standard_error": error}
        if rows and suite != "recall":
            title = f"Suite {suite}"
            tables.append(Table(f"suite-{suite}", title, tuple(columns), tuple(rows.values())))
    return tables


def _scores_of(result: Json) -> dict[str, tuple[Cell, Cell]]:
    """Return kind or task -> score and standard error, of a suite that scores."""
    if "kinds" in result:
        kinds = {**result["kinds"], "mean": result["overall"]}
        return {kind: (one["accuracy"], one["standard_error"]) for kind, one in kinds.items()}
    return {
        f"{one['task']} ({one['metric']})": (one["value"], one["standard_error"])
        for one in result.get("scores", ())
    }


def errors_table(run: RunData) -> Table | None:
    """List the distance of hidden states from the teacher's by layer and position; None without."""
    rows: tuple[Row, ...] = tuple(
        {"model": name, "layer": layer["layer"], "position": int(position), "error": error}
        for name, found in run.suites.get("diagnosis", {}).items()
        for layer in found.get("layers", ())
        for position, error in layer.get("error_by_position", {}).items()
    )
    columns = (
        Column("model", "model"),
        Column("layer", "layer", "count"),
        Column("position", "position below", "count", unit="tokens"),
        Column("error", "distance", "number"),
    )
    title = "Distance of the hidden states from the teacher's"
    return Table("layer-errors", title, columns, rows) if rows else None


def diagnosis_table(run: RunData) -> Table | None:
    """List what was seen of each converted layer; None where nothing was diagnosed."""
    rows: list[Row] = []
    for name, found in run.suites.get("diagnosis", {}).items():
        for layer in found.get("layers", ()):
            if layer["mixer"] == "attention":
                continue
            memory: Mapping[str, Cell] = layer.get("memory") or {}
            rows.append({"model": name, **_without(layer, ("memory", "zero_tensors")), **memory})
    columns = (
        Column("model", "model"),
        Column("layer", "layer", "count"),
        Column("mixer", "mixer"),
        Column("output_share", "adds, of the residual", "number"),
        Column("contribution_nats", "loss gained without", "number", unit="nats per token"),
        Column("median_tokens", "memory", "number", unit="tokens"),
        Column("state_rank", "state rank", "number"),
        Column("own_error", "own error", "number"),
        Column("error", "error after it", "number"),
    )
    title = "Converted layers one by one"
    return Table("diagnosis", title, columns, tuple(rows)) if rows else None


def _without(values: Json, keys: tuple[str, ...]) -> dict[str, Cell]:
    return {
        key: value
        for key, value in values.items()
        if key not in keys and not isinstance(value, list | Mapping)
    }
