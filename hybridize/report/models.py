"""The models of a run side by side: layout, tokens, score, speed; and the verdict on them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridize.core.errors import RunError
from hybridize.core.layout import Layout
from hybridize.report import units
from hybridize.report.run_data import Json, RunData, read_run


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of one model of a run."""

    name: str
    state: str
    """done, running or planned."""
    layout: Layout | None
    new_layers: tuple[int, ...] = ()
    """Layers converted by this stage."""
    tokens: int | None = None
    """Tokens trained on since the teacher, all stages together."""
    evaluation: Json | None = None
    speed: Mapping[int, Json] = field(default_factory=dict)
    """Context in tokens -> row of the bench."""

    @property
    def score(self) -> float | None:
        """Share of all problems solved, 0..1."""
        return self._overall("accuracy")

    @property
    def score_error(self) -> float | None:
        """Standard error of `score`."""
        return self._overall("standard_error")

    @property
    def num_converted(self) -> int | None:
        """Number of layers whose mixer is not attention."""
        return None if self.layout is None else len(self.layout.converted)

    def _overall(self, key: str) -> float | None:
        overall = (self.evaluation or {}).get("overall") or {}
        return overall.get(key)


def list_models(run: RunData) -> tuple[ModelFacts, ...]:
    """List teacher, stages, SFT and merge in the order of the run, planned stages included."""
    models = [_teacher(run)]
    done_or_planned = [stage.name for stage in run.stages]
    planned = {stage["name"]: stage for stage in (run.plan or {}).get("stages", [])}
    done_or_planned += [name for name in planned if name not in done_or_planned]
    for name in done_or_planned:
        models.append(_stage(run, name, planned.get(name, {}), models))
    if run.sft is not None:
        models.append(_stage(run, "sft", {}, models))
    if run.merge is not None:
        layout = run.merge.get("layout")
        models.append(_model(run, "merge", "done", layout, _tokens(run, "merge", run.merge)))
    return tuple(models)


def headline(run: RunData) -> ModelFacts | None:
    """Choose the model the first screen speaks of: the last one made, evaluated if any is."""
    made = [model for model in list_models(run)[1:] if model.state == "done"]
    scored = [model for model in made if model.score is not None]
    best = scored or made
    return best[-1] if best else None


def score_share(model: ModelFacts, teacher: ModelFacts) -> tuple[float, float] | None:
    """Return the score as a share of the teacher's, and its standard error.

    The two errors are combined as if independent, which is cautious: both solve the same problems.
    """
    if model.score is None or not teacher.score:
        return None
    share = model.score / teacher.score
    errors = (model.score_error or 0.0, share * (teacher.score_error or 0.0))
    return share, math.hypot(*errors) / teacher.score


def stated_context(run: RunData) -> int | None:
    """Return the longest context (tokens) at which every model of the bench was measured."""
    measured = [set(model.speed) for model in list_models(run) if model.speed]
    return max(set.intersection(*measured), default=None) if measured else None


def relative_speed(model: ModelFacts, teacher: ModelFacts, context_tokens: int) -> float | None:
    """Return the decode speed at that context as a multiple of the teacher's."""
    ours, theirs = (
        facts.speed.get(context_tokens, {}).get("decode_tokens_per_second")
        for facts in (model, teacher)
    )
    return ours / theirs if ours and theirs else None


def verdict(run_folder: Path | str) -> str:
    """Say in one sentence what a run has shown so far.

    Raises:
        RunError: not a run folder.
    """
    return verdict_of(read_run(run_folder))


def verdict_of(run: RunData) -> str:
    """Say in one sentence what a run has shown so far."""
    model, teacher = headline(run), list_models(run)[0]
    if model is None:
        known = "" if teacher.layout is None else f" of {teacher.layout.num_layers} layers"
        return f"Not finished: no student has been trained yet, 0{known} converted."
    layout = model.layout
    converted = (
        "An unknown number of layers"
        if layout is None
        else f"{len(layout.converted)} of {layout.num_layers} layers"
    )
    share, speed = score_share(model, teacher), _speed_words(run, model, teacher)
    if share is not None:
        kept = f"keep {units.ratio_text(share[0])} ± {share[1]:.2f} of the teacher's score"
        return f"{converted} converted {kept}{speed and f' at {speed}'}."
    decoding = speed and f"; decoding runs at {speed}"
    agreed = agreement_words(run, model)
    if agreed:
        return f"{converted} converted: {agreed}{decoding}."
    scored = model.score is not None and teacher.score is not None
    unknown = "a teacher that solves nothing" if scored else "not yet evaluated beside the teacher"
    return f"{converted} converted, {unknown}{decoding}."


def whole_agreement(run: RunData, model: ModelFacts) -> Json | None:
    """Return how a model agrees with the teacher on all completions; None where none was read."""
    rows = run.suites.get("agreement", {}).get(model.name, {}).get("rows", ())
    return next((row for row in rows if row["by"] == "completion"), None)


def agreement_words(run: RunData, model: ModelFacts) -> str:
    """Say how far a model agrees with the teacher, token by token; "" where it is not known."""
    found = whole_agreement(run, model)
    if found is None:
        return ""
    return (
        f"the likeliest next token is the teacher's at {100 * found['top1']:.1f} % of held-out "
        f"places, KL {units.three_digits(found['reverse_kl'])} nats a token"
    )


def _speed_words(run: RunData, model: ModelFacts, teacher: ModelFacts) -> str:
    context = stated_context(run)
    speed = None if context is None else relative_speed(model, teacher, context)
    if context is None or speed is None:
        return ""
    load = f"batch {run.bench['batch']}, " if run.bench and "batch" in run.bench else ""
    shortest = min(set(model.speed) & set(teacher.speed))
    at_shortest = relative_speed(model, teacher, shortest)
    also = ""
    if shortest < context and at_shortest is not None and (at_shortest < 1) != (speed < 1):
        also = f"; {units.ratio_text(at_shortest)}x at context {units.count_text(shortest)}"
    return (
        f"{units.ratio_text(speed)}x its decode speed "
        f"({load}context {units.count_text(context)}{also})"
    )


def find_model(run: RunData, name: str) -> ModelFacts:
    """Return the facts of one model.

    Raises:
        RunError: the run has no such model.
    """
    models = list_models(run)
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise RunError(f"run {run.path} has no model {name!r}. Its models are {known}.")


def _teacher(run: RunData) -> ModelFacts:
    layout = (run.evaluations.get("teacher") or {}).get("layout")
    if layout is None and run.teacher is not None:
        layout = str(Layout.uniform(int(run.teacher["num_layers"])))
    return _model(run, "teacher", "done", layout, 0)


def _stage(
    run: RunData, name: str, planned: Mapping[str, Any], before: list[ModelFacts]
) -> ModelFacts:
    stage = run.stage(name)
    values = (stage.values if stage else None) or {}
    state = "done" if values else "planned" if stage is None else "running"
    facts = _model(
        run, name, state, values.get("layout") or planned.get("layout"), _tokens(run, name, values)
    )
    new = values.get("new_layers")
    if new is None and facts.layout is not None and name != "sft":
        start = next((m for m in before if m.name == planned.get("start_from")), before[-1]).layout
        new = () if start is None else facts.layout.diff(start)
    return ModelFacts(**{**vars(facts), "new_layers": tuple(new or ())})


def _model(
    run: RunData, name: str, state: str, layout: str | None, tokens: int | None
) -> ModelFacts:
    # Speed depends on the layout alone: a merge is as fast as the stage it came from.
    benched: list[Json] = (run.bench or {}).get("models", [])
    own = [entry for entry in benched if entry["model"] == name]
    same = own or [entry for entry in benched if entry["layout"] == layout]
    rows: list[Json] = same[0]["rows"] if same else []
    return ModelFacts(
        name=name,
        state=state,
        layout=None if layout is None else Layout.parse(layout),
        tokens=tokens,
        evaluation=run.evaluations.get(name),
        speed={int(row["context_tokens"]): row for row in rows},
    )


def _tokens(run: RunData, name: str, values: Json) -> int | None:
    known = values.get("cumulative_tokens")
    return known if known is not None else (run.evaluations.get(name) or {}).get("tokens")
