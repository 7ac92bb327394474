"""The tables of cost and of what was exported."""

import shlex
from collections.abc import Mapping
from typing import Any

from hybridize.report import units
from hybridize.report.run_data import Json, RunData
from hybridize.report.tables import Cell, Column, Row, Table

SECONDS_PER_HOUR = 3600
BYTES_PER_GIB = 2**30


def nodes_table(run: RunData) -> Table:
    """List what each node of the run took."""
    rows: tuple[Row, ...] = tuple(
        {key: node.get(key) for key in ("node", "state", "seconds")}
        for node in (run.status or {}).get("nodes", [])
    )
    columns = (
        Column("node", "node"),
        Column("state", "state"),
        Column("seconds", "time", "seconds"),
    )
    return Table("nodes", "Time by node", columns, rows)


def cost_table(run: RunData) -> Table:
    """Sum up time, tokens and memory, and state machine, versions and seed.

    The CSV has each number once more, as it is.
    """
    facts = [*_time_facts(run), *_token_facts(run), *_memory_facts(run), *_machine_facts(run)]
    rows: tuple[Row, ...] = tuple(
        {"fact": fact, "value": text, "number": number} for fact, text, number in facts
    )
    columns = (
        Column("fact", "fact"),
        Column("value", "value"),
        Column("number", "number", is_shown=False),
    )
    return Table("cost", "Cost and reproduction", columns, rows)


Fact = tuple[str, str, Cell]


def _time_facts(run: RunData) -> list[Fact]:
    facts: list[Fact] = []
    nodes = (run.status or {}).get("nodes", [])
    if nodes:
        seconds = sum(node.get("seconds") or 0 for node in nodes)
        facts.append(("time in all", units.seconds_text(seconds), seconds))
        device = (run.environment or {}).get("device", "the device")
        hours = seconds / SECONDS_PER_HOUR
        facts.append((f"hours of {device}", units.three_digits(hours), hours))
    stages = _trained(run)
    if stages:
        seconds = sum(values.get("seconds") or 0 for values in stages)
        facts.append(("time of training", units.seconds_text(seconds), seconds))
    if run.align:
        seconds = run.align.get("seconds") or 0
        facts.append(("time of aligning", units.seconds_text(seconds), seconds))
    return facts


def _token_facts(run: RunData) -> list[Fact]:
    counts: dict[str, int] = {}
    stages = _trained(run)
    if stages:
        counts["tokens trained on"] = sum(values.get("tokens") or 0 for values in stages)
    if run.align:
        counts["tokens aligned on"] = run.align.get("tokens") or 0
    if run.importance:
        entries = [entry for found in run.importance.values() for entry in found.scores]
        counts["tokens of importance"] = sum(entry.tokens for entry in entries)
    return [(fact, units.tokens_text(count), count) for fact, count in counts.items()]


def _memory_facts(run: RunData) -> list[Fact]:
    """Return peak memory; energy too, which no machine has told so far."""
    stages = [stage for stage in (*run.stages, run.sft) if stage is not None]
    peaks = [line["peak_gib"] for stage in stages for line in stage.metrics if "peak_gib" in line]
    if not peaks:
        return []
    peak = max(peaks) * BYTES_PER_GIB
    return [
        ("peak memory of training", units.bytes_text(peak), peak),
        ("energy", "not measured", None),
    ]


def _machine_facts(run: RunData) -> list[Fact]:
    environment, teacher = run.environment or {}, run.teacher or {}
    facts: list[Fact] = []
    for key in ("device", "processor", "threads", "seed"):
        if environment.get(key) is not None:
            facts.append((key, str(environment[key]), None))
    if environment.get("command"):
        facts.append(("command", _command(environment["command"]), None))
    versions = environment.get("versions") or {}
    if versions:
        told = ", ".join(f"{package} {versions[package]}" for package in versions)
        facts.append(("versions", told, None))
    if "name" in teacher:
        facts.append(("teacher", f"{teacher['name']} ({teacher.get('family', 'unknown')})", None))
    if teacher.get("parameters"):
        count = int(teacher["parameters"])
        facts.append(("parameters of the teacher", units.tokens_text(count), count))
    if teacher.get("fingerprint"):
        facts.append(("fingerprint of the teacher", str(teacher["fingerprint"]), None))
    return facts


def _command(command: Any) -> str:
    return command if isinstance(command, str) else shlex.join(str(word) for word in command)


def _trained(run: RunData) -> list[Json]:
    return [stage.values for stage in (*run.stages, run.sft) if stage and stage.values]


def exports_table(run: RunData) -> Table | None:
    """List what was exported: size, and the difference in each program that was asked."""
    rows: list[Row] = []
    for name, found in run.exports.items():
        common: dict[str, Cell] = {
            "export": name,
            "dtype": found.get("dtype"),
            "bytes": sum(file.stat().st_size for file in (run.path / "export" / name).iterdir()),
        }
        rows += [{**common, **_check(check)} for check in found["checks"]]
        for program, why in (found.get("not_checked") or {}).items():
            rows.append({**common, "reader": program, "note": f"not asked: {why}"})
        if not found["checks"] and not found.get("not_checked"):
            rows.append({**common, "note": "not verified"})
    columns = (
        Column("export", "format"),
        Column("dtype", "weights"),
        Column("bytes", "size", "bytes"),
        Column("reader", "read by"),
        Column("deviation", "largest difference", "number"),
        Column("allowed", "allowed", "number"),
        Column("same", "same answers", "count"),
        Column("num_prompts", "of", "count"),
        Column("note", "note"),
    )
    title = "What was exported, held against the model it was made from"
    return Table("exports", title, columns, tuple(rows)) if rows else None


def _check(check: Mapping[str, Any]) -> dict[str, Cell]:
    found: dict[str, Cell] = {
        key: check.get(key) for key in ("reader", "deviation", "allowed", "same", "num_prompts")
    }
    kind = "logits" if check.get("reader") == "transformers" else "log-probabilities"
    rounded = ", computed in a smaller type" if check.get("is_rounded") else ""
    return {**found, "note": f"{kind}{rounded}"}
