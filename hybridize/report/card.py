"""The model card of one model of a run, as the Hugging Face README with its metadata block."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridize.core.layout import explain_letters
from hybridize.report import rows, units
from hybridize.report.models import (
    ModelFacts,
    find_model,
    list_models,
    relative_speed,
    score_share,
    stated_context,
)
from hybridize.report.quantization import describe_quantization, quantization_table
from hybridize.report.run_data import RunData, read_run
from hybridize.report.tables import Cell, Column, Row, Table, to_markdown

_HUB_ID = re.compile(r"[\w-]+/[\w.-]+")


def model_card(run_folder: Path | str, node: str) -> str:
    """Write the card of the model that `node` made: a stage name, `sft` or `merge`.

    What the run has not measured is left out, and the card says so.

    Raises:
        RunError: not a run folder, or it has no such model.
    """
    run = read_run(run_folder)
    model, teacher = find_model(run, node), list_models(run)[0]
    parts = [
        _metadata(run, model),
        f"# {_title(run, model)}",
        _summary(run, model),
        "## What was converted",
        _layout(model),
        "## Scores",
        _scores(model, teacher),
        "## Speed",
        _speed(run, model, teacher),
        *_quantised(run, model),
        "## How to load",
        _loading(run, model),
        "## Training",
        _training(run, model),
        "## Intended use and limits",
        _limits(run, model),
    ]
    if run.recipe is not None:
        parts += ["## Recipe", f"```yaml\n{run.recipe.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _title(run: RunData, model: ModelFacts) -> str:
    return run.name if run.name == model.name else f"{run.name}-{model.name}"


def _teacher_name(run: RunData) -> str:
    return str((run.teacher or {}).get("name", "its teacher"))


def _metadata(run: RunData, model: ModelFacts) -> str:
    teacher = run.teacher or {}
    mixers = set(model.layout.mixers if model.layout else ()) - {"attention"}
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines.append(f"license: {_quoted(teacher.get('license', 'other'))}")
    # The Hub knows no local folders: a path stays out, a name of the form owner/model goes in.
    origin = next(
        (
            value
            for key in ("path", "name")
            if _HUB_ID.fullmatch(value := str(teacher.get(key, "")))
        ),
        None,
    )
    if origin is not None:
        lines += [f"base_model: {_quoted(origin)}", "base_model_relation: finetune"]
    elif "name" in teacher:
        lines.append(f"base_model: {_quoted(teacher['name'])}")
    tags = ["hybridize", "hybrid", "distillation", *sorted(mixers)]
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in tags)]
    lines += _results_metadata(run, model)
    return "\n".join([*lines, "---"])


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _results_metadata(run: RunData, model: ModelFacts) -> list[str]:
    evaluation = model.evaluation
    if evaluation is None:
        return []
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": kind, "type": f"hybridize/{evaluation.get('suite', 'suite')}"},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": float(units.three_digits(found["accuracy"])),
                    "name": f"accuracy (standard error {units.three_digits(_error(found))})",
                }
            ],
        }
        for kind, found in evaluation.get("kinds", {}).items()
    ]
    # JSON is YAML: one line for each result needs no YAML writer.
    lines = ["model-index:", f"- name: {_quoted(_title(run, model))}", "  results:"]
    return lines + [f"  - {json.dumps(result)}" for result in results]


def _error(found: Any) -> float:
    return float(found.get("standard_error") or 0.0)


def _summary(run: RunData, model: ModelFacts) -> str:
    teacher = list_models(run)[0]
    if model.layout is None:
        return f"Made from {_teacher_name(run)} with hybridize."
    kept = model.layout.num_layers - len(model.layout.converted)
    words = (
        f"A hybrid made from {_teacher_name(run)} with hybridize: {len(model.layout.converted)} of "
        f"{model.layout.num_layers} attention layers are converted, {kept} stay attention."
    )
    share = score_share(model, teacher)
    if share is not None:
        words += f" It keeps {units.ratio_text(share[0])} ± {share[1]:.2f} of the teacher's score."
    return words


def _layout(model: ModelFacts) -> str:
    if model.layout is None:
        return "The layout is not known yet."
    converted = " ".join(str(layer) for layer in model.layout.converted) or "none"
    return (
        f"```\n{model.layout}\n```\n\n"
        f"A letter per layer, counted from 0: {explain_letters([model.layout])}. "
        f"Converted layers: {converted}."
    )


def _scores(model: ModelFacts, teacher: ModelFacts) -> str:
    if model.evaluation is None:
        return "This model has not been evaluated yet."
    columns = (
        Column("kind", "kind"),
        Column("teacher", "teacher", "number", error="teacher_error"),
        Column("student", model.name, "number", error="student_error"),
        Column("num_problems", "problems", "count"),
    )
    theirs = {**(teacher.evaluation or {}).get("kinds", {})}
    theirs["mean"] = (teacher.evaluation or {}).get("overall", {})
    ours = {**model.evaluation.get("kinds", {}), "mean": model.evaluation.get("overall", {})}
    found: list[Row] = [
        {
            "kind": kind,
            "teacher": theirs.get(kind, {}).get("accuracy"),
            "teacher_error": theirs.get(kind, {}).get("standard_error"),
            "student": score.get("accuracy"),
            "student_error": score.get("standard_error"),
            "num_problems": score.get("num_problems"),
        }
        for kind, score in ours.items()
    ]
    table = to_markdown(Table("scores", "Scores", columns, tuple(found)))
    sampling = ", ".join(
        f"{key.replace('_', ' ')} {value}"
        for key, value in (model.evaluation.get("sampling") or {}).items()
    )
    how = f" Sampling: {sampling}." if sampling else ""
    suite = model.evaluation.get("suite", "unknown")
    return f"Share of problems solved ± one standard error, suite {suite}.{how}\n\n{table}"


def _speed(run: RunData, model: ModelFacts, teacher: ModelFacts) -> str:
    if not model.speed:
        return "This model has not been timed yet."
    columns = (
        Column("context_tokens", "context", "count", unit="tokens"),
        Column("prefill_tokens_per_second", "prefill", "number", unit="tokens/s"),
        Column("decode_tokens_per_second", "decode", "number", unit="tokens/s"),
        Column("relative", "decode, teacher = 1", "ratio"),
        Column("cache_bytes", "cache and state", "bytes"),
    )
    found: tuple[Row, ...] = tuple(
        {**row, "relative": relative_speed(model, teacher, context)}
        for context, row in sorted(model.speed.items())
    )
    bench = run.bench or {}
    load = ", ".join(
        f"{key.replace('_', ' ')} {bench[key]}"
        for key in ("device", "threads", "dtype", "batch", "output_tokens")
        if bench.get(key) is not None
    )
    return f"Load: {load}.\n\n{to_markdown(Table('speed', 'Speed', columns, found))}"


def _quantised(run: RunData, model: ModelFacts) -> list[str]:
    """Tell of the quantised files of this model, if there are any."""
    found = run.quantised
    if found is None or found["model"] != model.name:
        return []
    words, table = describe_quantization(found), to_markdown(quantization_table(found))
    return ["## In fewer bits", f"{words}\n\n{table}"]


def _loading(run: RunData, model: ModelFacts) -> str:
    folder = _title(run, model)
    return (
        "```python\n"
        "import hybridize  # tells transformers of the architecture; no remote code is run\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        "```\n\n"
        f"`{folder}` is the folder or repository that holds this card."
    )


def _training(run: RunData, model: ModelFacts) -> str:
    teacher = run.teacher or {}
    facts: list[tuple[str, Cell]] = [("teacher", _teacher_name(run))]
    for key in ("revision", "fingerprint"):
        if teacher.get(key):
            facts.append((f"teacher {key}", str(teacher[key])))
    if model.tokens is not None:
        facts.append(("tokens since the teacher", units.tokens_text(model.tokens)))
    facts += _stage_facts(run)
    environment = run.environment or {}
    for key in ("seed", "device"):
        if environment.get(key) is not None:
            facts.append((key, str(environment[key])))
    versions = environment.get("versions") or {}
    if versions:
        facts.append(("versions", ", ".join(f"{name} {versions[name]}" for name in versions)))
    return to_markdown(Table("training", "Training", *rows.fact_columns(facts)))


def _stage_facts(run: RunData) -> Sequence[tuple[str, Cell]]:
    facts: list[tuple[str, Cell]] = []
    for stage in (*run.stages, run.sft):
        if stage is not None and stage.values is not None:
            spent = stage.values.get("tokens")
            facts.append((stage.name, None if spent is None else units.tokens_text(spent)))
    if run.merge is not None:
        pairs = zip(run.merge["models"], run.merge["weights"], strict=True)
        facts.append(("merge", " + ".join(f"{weight:g} {name}" for name, weight in pairs)))
    return facts


def _limits(run: RunData, model: ModelFacts) -> str:
    words = [
        "For research on hybrid models, and for the uses its teacher is fit for. Converted layers "
        "keep a state of fixed size: exact recall from a long context is the first thing to check.",
        f"The licence and the limits of {_teacher_name(run)} carry over.",
    ]
    if model.score is None:
        words.append("This model has not been evaluated.")
    if model.speed and stated_context(run) is not None:
        longest = units.count_text(max(model.speed))
        words.append(f"Nothing was measured beyond a context of {longest} tokens.")
    return " ".join(words)
