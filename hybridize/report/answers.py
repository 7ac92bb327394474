"""The answers of the first screen: which layers, what it cost, what was lost, how fast, which."""

import math
from collections.abc import Sequence

from hybridize.report import rows_scores, units
from hybridize.report.models import (
    ModelFacts,
    agreement_words,
    headline,
    list_models,
    relative_speed,
    score_share,
    stated_context,
)
from hybridize.report.run_data import Json, RunData
from hybridize.report.tables import Cell, Column, Row, Table

NEAR_ERRORS = 2.0
"""Two scores are near each other up to this many standard errors of their difference."""


def pick(run: RunData) -> ModelFacts | None:
    """Choose the fastest student that no other one clearly beats; None if none is scored.

    Of equally fast ones, and where nothing was timed, the one with the best score, the last made.
    """
    near = _near_the_best(run)[::-1]
    return max(near, key=lambda model: (_speed(run, model), model.score or 0.0), default=None)


def pick_words(run: RunData) -> str | None:
    """Say which model to take, and why; None where no student has been scored."""
    chosen = pick(run)
    if chosen is None:
        return None
    words = f"Pick {chosen.name}: {_reason(run, chosen)}."
    faster = _faster(run, chosen)
    if faster:
        told = ", ".join(f"{one.name} ({units.ratio_text(_speed(run, one))}x)" for one in faster)
        words += f" Faster, but clearly lower in score or in another suite: {told}."
    if _forgotten(run, chosen):
        words += " Long prompts speak against it, see what was lost."
    return words


def _faster(run: RunData, chosen: ModelFacts) -> list[ModelFacts]:
    speed = _speed(run, chosen)
    return [model for model in _scored(run) if _speed(run, model) > speed > 0]


def _reason(run: RunData, chosen: ModelFacts) -> str:
    scored, near = _scored(run), _near_the_best(run)
    if len(scored) == 1:
        return "the only student evaluated so far"
    timed = stated_context(run) is not None
    others = [model.name for model in near if model.name != chosen.name]
    if not others:
        return "every other student scores clearly lower, or in another suite"
    told = f"its score cannot be told from the best (within {NEAR_ERRORS:.0f} standard errors"
    told += f", as those of {', '.join(others)})"
    why = "it is the fastest of these" if timed else "nothing was timed, so the best score decides"
    return f"{told}, and {why}"


def answers_table(run: RunData) -> Table | None:
    """Answer the five questions for the last model and the one to pick; None without a student."""
    last, chosen = headline(run), pick(run)
    if last is None or last.layout is None:
        return None
    models = {last.name: last}
    if chosen is not None:
        models[chosen.name] = chosen
        fastest = max(_faster(run, chosen), key=lambda one: _speed(run, one), default=chosen)
        if len(models) == 1:
            models[fastest.name] = fastest
    load = _load(run)
    rows: list[dict[str, Cell]] = [
        {"question": question.format(load=load and f" ({load})")} for question in _QUESTIONS
    ]
    columns = [Column("question", "question")]
    for name, model in models.items():
        notes = ["last made"] if name == last.name else []
        notes += ["to pick"] if chosen is not None and name == chosen.name else []
        columns.append(Column(name, f"{name}, {' and '.join(notes) or 'the fastest'}"))
        for row, ask in zip(rows, _QUESTIONS.values(), strict=True):
            row[name] = ask(run, model)
    return Table("answers", "In short", tuple(columns), tuple(rows))


def _scored(run: RunData) -> list[ModelFacts]:
    models = list_models(run)[1:]
    return [model for model in models if model.state == "done" and model.score is not None]


def _near_the_best(run: RunData) -> list[ModelFacts]:
    """List the students that no other one clearly beats, in the scores or in any other suite."""
    scored = _scored(run)
    near = [
        model
        for model in scored
        if not any(_beats(run, other, model) for other in scored if other is not model)
    ]
    return near or sorted(scored, key=lambda model: model.score or 0.0)[-1:]


def _beats(run: RunData, one: ModelFacts, other: ModelFacts) -> bool:
    pairs = [((one.score, one.score_error), (other.score, other.score_error))]
    for found in run.suites.values():
        whole = [found.get(model.name, {}).get("overall") for model in (one, other)]
        first, second = (
            (score["accuracy"], score["standard_error"]) if score else None for score in whole
        )
        if first and second:
            pairs.append((first, second))
    return any(
        (ours or 0.0) - (theirs or 0.0) > NEAR_ERRORS * math.hypot(error or 0.0, their_error or 0.0)
        for (ours, error), (theirs, their_error) in pairs
    )


def _speed(run: RunData, model: ModelFacts) -> float:
    context = stated_context(run)
    speed = None if context is None else relative_speed(model, list_models(run)[0], context)
    return speed or 0.0


def _layers(run: RunData, model: ModelFacts) -> str:
    assert model.layout is not None, "a model that is shown here is made"
    return (
        f"{_ranges(model.layout.converted)} ({len(model.layout.converted)} of "
        f"{model.layout.num_layers})"
    )


def _cost(run: RunData, model: ModelFacts) -> str:
    path = _path(run, model.name)
    seconds = [
        float(stage.values["seconds"])
        for name in path
        if (stage := run.stage(name)) is not None and stage.values and "seconds" in stage.values
    ]
    words = [] if not model.tokens else [f"{units.tokens_text(model.tokens)} tokens"]
    device = (run.environment or {}).get("device")
    where = f" of training on {device}" if device else " of training"
    words += [f"{units.seconds_text(sum(seconds))}{where}"] if seconds else []
    return ", ".join(words) or "not recorded"


def _path(run: RunData, name: str) -> list[str]:
    """List the stages a model went through, itself the last."""
    starts = {
        stage["name"]: stage.get("start_from") for stage in (run.plan or {}).get("stages", ())
    }
    names = [stage.name for stage in run.stages]
    if name == "merge":
        members = [_path(run, member) for member in (run.merge or {}).get("models", ())]
        return list(dict.fromkeys(stage for path in members for stage in path))
    if name == "sft":
        layouts = {model.name: model.layout for model in list_models(run)}
        own = layouts.get("sft")
        start = next((name for name in names[::-1] if own and layouts[name] == own), "")
        return [*_path(run, start), "sft"]
    if name not in names:
        return []
    before = starts.get(name) or (names[names.index(name) - 1] if names.index(name) else "")
    return [*_path(run, before), name]


def _lost(run: RunData, model: ModelFacts) -> str:
    share = score_share(model, list_models(run)[0])
    if share is None:
        told = agreement_words(run, model) or "not evaluated beside the teacher"
        return told + _other_suites(run, model) + _forgotten(run, model)
    words = f"{units.ratio_text(share[0])} ± {share[1]:.2f} of the score is kept"
    table = rows_scores.score_bars_table(run, model)
    worse = [row for row in table.rows if row["significant"]] if table else []
    lost = [f"{row['kind']} by {_loss(row):.2f}" for row in worse]
    words += f"; worse: {', '.join(lost)}" if lost else "; no kind is worse beyond chance"
    return words + _other_suites(run, model) + _forgotten(run, model)


def _other_suites(run: RunData, model: ModelFacts) -> str:
    """Say what share of the teacher's score each other suite but recall finds."""
    words = ""
    for suite, found in run.suites.items():
        ours, theirs = (found.get(name, {}).get("overall") for name in (model.name, "teacher"))
        if suite != "recall" and ours and theirs and theirs["accuracy"]:
            words += (
                f"; suite {suite}: {ours['accuracy'] / theirs['accuracy']:.2f} of the teacher's"
            )
    return words


def _forgotten(run: RunData, model: ModelFacts) -> str:
    """Name the length and depth at which fewest facts are found beside the teacher; "" if even."""
    found = run.suites.get("recall", {})
    theirs = {_cell(cell): cell for cell in found.get("teacher", {}).get("cells", ())}
    gaps = [
        (theirs[_cell(cell)]["accuracy"] - cell["accuracy"], cell)
        for cell in found.get(model.name, {}).get("cells", ())
        if _cell(cell) in theirs
    ]
    if not gaps:
        return ""
    gap, cell = max(gaps, key=lambda pair: pair[0])
    there = theirs[_cell(cell)]
    error = math.hypot(cell.get("standard_error") or 0, there.get("standard_error") or 0)
    if gap <= NEAR_ERRORS * error:
        return ""
    return (
        f"; long prompts: {cell['accuracy']:.2f} of the facts at {cell['prompt_length']:,} tokens, "
        f"depth {100 * cell['depth']:.0f} % (teacher {there['accuracy']:.2f})"
    )


def _cell(cell: Json) -> tuple[float, float]:
    return cell["prompt_length"], cell["depth"]


def _loss(row: Row) -> float:
    value = row["loss"]
    return float(value) if isinstance(value, int | float) else 0.0


def _fast(run: RunData, model: ModelFacts) -> str:
    context, teacher = stated_context(run), list_models(run)[0]
    if context is None or not model.speed:
        return "not timed"
    ours, theirs = model.speed[context], teacher.speed.get(context, {})
    words = []
    for part in ("decode", "prefill"):
        key = f"{part}_tokens_per_second"
        if ours.get(key) and theirs.get(key):
            words.append(f"{part} {units.ratio_text(ours[key] / theirs[key])}x")
    if ours.get("cache_bytes") and theirs.get("cache_bytes"):
        words.append(f"cache {units.ratio_text(ours['cache_bytes'] / theirs['cache_bytes'])}x")
    return ", ".join(words) or "not timed beside the teacher"


def _load(run: RunData) -> str:
    context, batch = stated_context(run), (run.bench or {}).get("batch")
    words = [] if context is None else [f"context {units.count_text(context)}"]
    return ", ".join([*words, *([f"batch {batch}"] if words and batch is not None else [])])


_QUESTIONS = {
    "Which layers are converted?": _layers,
    "What did it cost?": _cost,
    "What was lost?": _lost,
    "How fast, teacher = 1?{load}": _fast,
}


def _ranges(layers: Sequence[int]) -> str:
    """Write layer numbers, three or more in a row as a range: 1, 4, 7-10."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][-1] + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    parts = [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(str(layer) for layer in run)
        for run in found
    ]
    return ", ".join(parts) or "no layer"
