"""What eval and diagnose do: load what is asked, run the suite, draw its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hybridize.cli.options import name_model, say
from hybridize.core.artifacts import write_text
from hybridize.core.catalog import did_you_mean, known_names
from hybridize.core.errors import RecipeError
from hybridize.core.quantities import parse_tokens
from hybridize.core.suites import COMPARING, HARNESS, limit_of

if TYPE_CHECKING:
    from hybridize.evaluation.subjects import Subject
    from hybridize.stages.diagnose import Diagnosis

LONGEST = 4096
"""Tokens of a document of the user's own; the rest of it is a document of its own."""


class Found(Protocol):
    """What a suite found, to print."""

    def to_json(self) -> Any:
        """Return plain values."""


def check_suite(suite: str) -> None:
    """Refuse a suite that does not exist, before anything is loaded.

    Raises:
        RecipeError: it does not.
    """
    known = known_names("suites")
    if suite not in known and ":" not in suite:
        hint = did_you_mean(suite, known)
        raise RecipeError(
            f"eval --suite {suite}: not known. {hint}Known: {', '.join(known)}, "
            f"{HARNESS}TASK of lm-evaluation-harness, and package.module:name."
        )


def parse_lengths(text: str) -> tuple[int, ...]:
    """Read the lengths of `--lengths 128,1k`."""
    return tuple(parse_tokens(part) for part in text.split(","))


def load_subjects(models: Sequence[str], *, stock: bool, device: str | None) -> list["Subject"]:
    """Load models with our class, or with one of transformers where only that holds them.

    Raises:
        RecipeError: two have the same name, so that their files would be one.
        ModelError: a model cannot be loaded.
    """
    from hybridize.stages.evaluate import load_subject

    names = [name_model(model) for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            f"eval: two models are called {twice[0]!r}, as their folders are. Rename a folder."
        )
    return [
        load_subject(model, name=name, stock=stock, device=device)
        for model, name in zip(models, names, strict=True)
    ]


def connect(url: str, model: str | None, tokenizer: str | None) -> "Subject":
    """Reach a served model.

    Raises:
        RecipeError: no tokenizer is named.
        MachineError: nothing answers.
    """
    from hybridize.core.settings import read_settings
    from hybridize.evaluation.endpoint import Endpoint
    from hybridize.models.loading import load_tokenizer

    if tokenizer is None:
        raise RecipeError(
            f"eval --endpoint {url}: prompts are sent as token ids. "
            "Name the folder of the served model's tokenizer with --tokenizer."
        )
    key = read_settings().api_key
    return Endpoint(url, load_tokenizer(tokenizer), model=model, api_key=key)


def run_suite(
    subjects: Sequence["Subject"],
    suite: str,
    out: Path | None,
    *,
    limit: int | None,
    batch: int,
    seed: int,
    text: str | None,
    **how: Any,
) -> Found:
    """Run a suite and write its result files and figures under `out`.

    Raises:
        RecipeError: there is nothing to evaluate, or the suite needs other models.
    """
    if text is not None and suite not in COMPARING:
        raise RecipeError(
            f"eval --text {text}: suite {suite} asks problems and reads no text. "
            "Use --suite agreement."
        )
    if not subjects:
        raise RecipeError("eval: nothing to evaluate. Name a MODEL, or a server with --endpoint.")
    if suite.startswith(HARNESS):
        from hybridize.stages import harness

        asked = harness.HarnessSettings(
            tasks=tuple(suite.removeprefix(HARNESS).split(",")),
            limit=limit,
            batch=batch,
            seed=seed,
            max_new_tokens=how["max_new_tokens"],
        )
        return harness.run_all(subjects, asked, out)
    number = limit or limit_of(suite)
    assert number is not None, "only those of the harness ask all there is"
    if suite == "agreement":
        from hybridize.stages import agreement

        settings = agreement.AgreementSettings(rows=number, seed=seed)
        rows = text and _open(text, subjects[0])
        compared = agreement.run_all(subjects, settings, out, text=rows or None)
        _draw_agreement(compared.to_json(), out)
        return compared
    from hybridize.stages import evaluate

    scores = evaluate.run_all(
        subjects,
        evaluate.EvaluateSettings(suite=suite, problems=number, batch=batch, seed=seed, **how),
        out,
        progress=lambda done, total: say(f"{done}/{total}") if done == total else None,
    )
    _draw_recall(scores.to_json(), out)
    return scores


def run_diagnosis(
    model: str,
    teacher: str | None,
    out: Path | None,
    *,
    tokens: str,
    problems: int,
    text: str | None,
    device: str | None,
) -> "Diagnosis":
    """Diagnose a model; raises like `hybridize.stages.diagnose.run`."""
    from hybridize import api
    from hybridize.evaluation.subjects import InProcess
    from hybridize.stages import diagnose

    student = api.load_model(model, name=name_model(model), device=device)
    other = None if teacher is None else api.load_teacher(teacher, device=device)
    settings = diagnose.DiagnoseSettings(tokens=parse_tokens(tokens), problems=problems)
    rows = text and _open(text, InProcess.of(student))
    home = out and out / student.name
    return diagnose.run(student, settings, home, teacher=other, text=rows or None)


def _open(text: str, subject: "Subject") -> Any:
    """Open text of the user's own as rows, its documents cut where the model's window ends.

    Raises:
        RecipeError: the model is a served one.
        RunError: the text is missing, or cannot be read.
    """
    from hybridize.api import load_text
    from hybridize.evaluation.subjects import InProcess

    if not isinstance(subject, InProcess):
        raise RecipeError(f"eval --text {text}: a served model does not tell all it needs.")
    window = getattr(subject.network.config, "max_position_embeddings", LONGEST)
    return load_text(text, tokenizer=subject.tokenizer, sequence_length=min(window, LONGEST))


def _draw_recall(scores: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Write a heat map of each model that was asked for facts by length and depth."""
    from hybridize.report.figures import chart, heat, svg
    from hybridize.report.rows_suites import heat_rows

    for entry in scores:
        rows = heat_rows(entry)
        if rows and out is not None:
            drawn = svg.standalone(heat.heat_map(rows, chart.WIDE))
            write_text(out / f"{entry['model']}-recall.svg", drawn)


def _draw_agreement(compared: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Write the curves of all students by position."""
    from hybridize.report.figures import chart, heat, svg
    from hybridize.report.rows_suites import agreement_rows

    rows = agreement_rows(compared)
    if rows and out is not None:
        drawn = svg.standalone(heat.agreement_curves(rows, chart.WIDE))
        write_text(out / "agreement.svg", drawn)
