"""The tables of training and speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from hybridize.report.models import ModelFacts, headline, list_models, relative_speed
from hybridize.report.rows import fact_columns
from hybridize.report.run_data import Json, RunData, StageData
from hybridize.report.tables import Cell, Column, Row, Table
from hybridize.report.theory import Theory

MAX_POINTS = 120
"""Training points drawn per stage; longer series are averaged in equal parts."""


def stages_table(run: RunData) -> Table:
    """List the finished stages: tokens, and held-out reverse KL before and after."""
    stages = [stage for stage in (*run.stages, run.sft) if stage is not None]
    rows: tuple[Row, ...] = tuple(
        {
            "stage": stage.name,
            "converted": len(values.get("converted", ())),
            "tokens": values.get("tokens"),
            "cumulative_tokens": values.get("cumulative_tokens"),
            "before": heldout_reverse_kl(values, "heldout_before"),
            "after": heldout_reverse_kl(values, "heldout"),
            "trainable": values.get("trainable"),
            "parameters": values.get("parameters"),
            "seconds": values.get("seconds"),
        }
        for stage in stages
        if (values := stage.values) is not None
    )
    columns = (
        Column("stage", "stage"),
        Column("converted", "converted", "count", unit="layers"),
        Column("tokens", "tokens", "tokens"),
        Column("cumulative_tokens", "since the teacher", "tokens"),
        Column("before", "held-out KL before", "number"),
        Column("after", "held-out KL after", "number"),
        Column("trainable", "trained parameters", "tokens"),
        Column("parameters", "all parameters", "tokens"),
        Column("seconds", "time", "seconds"),
    )
    return Table("stages", "Stages; held-out reverse KL in nats per token", columns, rows)


def heldout_reverse_kl(values: Json, when: str) -> float | None:
    """Return the reverse KL among the measurements `heldout_before` or `heldout` of a stage."""
    found = (values.get(when) or {}).get("reverse_kl")
    return None if found is None else float(found)


def distillation_table(run: RunData) -> Table:
    """List training and held-out reverse KL over tokens since the teacher, all stages."""
    rows: list[Row] = []
    end = 0
    for stage in run.stages:
        start = _start_tokens(run, stage, end)
        rows += _curve(stage, start, "reverse_kl", (stage.values or {}))
        end = start + int(max((line["tokens"] for line in stage.metrics), default=0))
    return _curve_table("distillation", "Distillation", "reverse KL", rows)


def sft_table(run: RunData) -> Table:
    """List the loss of supervised fine-tuning over tokens since the teacher."""
    rows: list[Row] = []
    if run.sft is not None:
        last = max((model.tokens or 0 for model in list_models(run)[:-1]), default=0)
        rows = _curve(run.sft, _start_tokens(run, run.sft, last), "loss", {})
    return _curve_table("sft", "Supervised fine-tuning", "loss", rows)


def _curve_table(name: str, title: str, quantity: str, rows: Sequence[Row]) -> Table:
    columns = (
        Column("stage", "stage"),
        Column("stage_start", "stage starts at", "tokens"),
        Column("cumulative_tokens", "tokens since the teacher", "tokens"),
        Column("train", f"{quantity}, training", "number", unit="nats per token"),
        Column("heldout", f"{quantity}, held out", "number", unit="nats per token"),
    )
    return Table(name, title, columns, tuple(rows))


def _start_tokens(run: RunData, stage: StageData, previous_end: int) -> int:
    values = stage.values or {}
    if "cumulative_tokens" in values and "tokens" in values:
        return int(values["cumulative_tokens"] - values["tokens"])
    planned = {entry["name"]: entry for entry in (run.plan or {}).get("stages", [])}
    start_from = planned.get(stage.name, {}).get("start_from") or ""
    if start_from == "teacher":
        return 0
    before = run.stage(start_from)
    known = (before.values or {}).get("cumulative_tokens") if before else None
    return previous_end if known is None else int(known)


def _curve(stage: StageData, start: int, part: str, values: Json) -> list[Row]:
    train = [
        (start + line["tokens"], value)
        for line in stage.metrics
        if (value := _loss(line, part)) is not None
    ]
    held = [
        (start + line["tokens"], value)
        for line in stage.metrics
        if (value := _heldout(line.get("heldout"), part)) is not None
    ]
    before = heldout_reverse_kl(values, "heldout_before")
    after = heldout_reverse_kl(values, "heldout")
    if before is not None:
        held.insert(0, (start, before))
    if (
        after is not None
        and "tokens" in values
        and held[-1:] != [(start + values["tokens"], after)]
    ):
        held = [point for point in held if point[0] != start + values["tokens"]]
        held.append((start + values["tokens"], after))
    points: list[dict[str, Cell]] = [
        {"cumulative_tokens": tokens, "train": loss} for tokens, loss in _thin(train)
    ]
    points += [{"cumulative_tokens": tokens, "heldout": loss} for tokens, loss in held]
    points.sort(key=lambda point: float(point["cumulative_tokens"] or 0))
    return [{"stage": stage.name, "stage_start": start, **point} for point in points]


def _loss(line: Json, part: str) -> float | None:
    # A stage trained on another loss has no such part: only its held-out points are drawn.
    value = line.get("loss") if part == "loss" else (line.get("parts") or {}).get(part)
    return None if value is None else float(value)


def _heldout(found: Mapping[str, Any] | None, part: str) -> float | None:
    if not found:
        return None
    value = found.get("cross_entropy" if part == "loss" else part)
    return None if value is None else float(value)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[int, float]]:
    # The first points hold the spike of a conversion: they are kept as they are.
    kept = max(1, -(-len(points) // MAX_POINTS))
    head = 10 if kept > 1 else 0
    thinned = [(int(tokens), loss) for tokens, loss in points[:head]]
    for first in range(head, len(points), kept):
        part = points[first : first + kept]
        tokens = sum(point[0] for point in part) / len(part)
        thinned.append((int(tokens), sum(point[1] for point in part) / len(part)))
    return thinned


def speed_table(run: RunData) -> Table:
    """List prefill speed, decode speed and cache bytes by model and context length."""
    models, chosen = list_models(run), headline(run)
    theory = Theory(run, models[0])
    shown = _shown_for(models, None if chosen is None else chosen.name)
    rows: tuple[Row, ...] = tuple(
        {
            "model": model.name,
            "shown_as": shown[model.name],
            "is_teacher": model is models[0],
            "is_headline": chosen is not None and model.name == chosen.name,
            "context_tokens": context,
            "prefill_tokens_per_second": row.get("prefill_tokens_per_second"),
            "decode_tokens_per_second": row.get("decode_tokens_per_second"),
            "relative_decode_speed": relative_speed(model, models[0], context),
            "cache_bytes": row.get("cache_bytes"),
            **theory.predict(model, context),
        }
        for model in models
        for context, row in sorted(model.speed.items())
    )
    columns = (
        Column("model", "model"),
        Column("context_tokens", "context", "count", unit="tokens"),
        Column("prefill_tokens_per_second", "prefill", "number", unit="tokens/s"),
        Column("decode_tokens_per_second", "decode", "number", unit="tokens/s"),
        Column("relative_decode_speed", "decode, teacher = 1", "ratio"),
        Column("cache_bytes", "cache and state", "bytes"),
        *(
            Column(key, key.replace("_", " "), "number", is_shown=False)
            for key in (
                "prefill_tokens_per_second_by_flops",
                "decode_tokens_per_second_by_flops",
                "cache_bytes_by_formula",
            )
        ),
    )
    return Table("speed", "Speed and memory", columns, rows)


def _shown_for(models: Sequence[ModelFacts], chosen: str | None) -> dict[str, str]:
    """Map each model to the one that stands for all of its layout in figures of speed.

    That is the teacher, the model of the verdict, or the first that was made.
    """
    first: dict[str, str] = {}
    for model in sorted(models, key=lambda one: (one.name != chosen, models.index(one))):
        first.setdefault(str(model.layout), model.name)
    first[str(models[0].layout)] = models[0].name
    return {model.name: first[str(model.layout)] for model in models}


def load_table(run: RunData) -> Table:
    """State the load and the machine of the bench."""
    keys = ("device", "threads", "dtype", "batch", "output_tokens")
    bench = run.bench or {}
    facts: list[tuple[str, Cell]] = [(key, bench[key]) for key in keys if key in bench]
    return Table("bench-load", "Load of the bench", *fact_columns(facts))


def align_table(run: RunData) -> Table:
    """List how far the mixer of each layer is from the attention, before and after aligning."""
    columns = (
        Column("layer", "layer", "count"),
        Column("before", "error as it starts", "ratio"),
        Column("after", "error aligned", "ratio"),
    )
    rows: tuple[Row, ...] = tuple(
        {key: entry.get(key) for key in ("layer", "before", "after")}
        for entry in (run.align or {}).get("errors", [])
    )
    return Table("aligned-mixers", "Mixers aligned to the attention of their layer", columns, rows)
