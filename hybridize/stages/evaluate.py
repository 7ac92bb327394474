"""Evaluate one model by generation on held-out problems, log-likelihood beside it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hybridize.core.artifacts import hash_json, read_jsonl, write_json, write_text
from hybridize.core.ranking import Ranked, describe_disagreements
from hybridize.evaluation.answers import Answer
from hybridize.evaluation.paired import Comparison, compare
from hybridize.evaluation.results import Results
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.scores import GroupScore, KindScore, cross, group, score
from hybridize.evaluation.subjects import InProcess, Subject, describe_versions
from hybridize.evaluation.suites import DEPTHS, LENGTHS, Asked, ask
from hybridize.models.model import Model, load
from hybridize.models.stock import is_stock
from hybridize.training.device import choose_device

ANSWERS, TIMING = "answers.jsonl", "timing.json"
WIDTH = 46
"""Columns of the printed table before those of several answers."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is asked of a model; the same settings ask every model the same problems."""

    suite: str = "tasks"
    """Name in `hybridize.evaluation.suites`, or `package.module:name`."""
    problems: int = 100
    """Held-out problems of each kind; see `Asked`."""
    max_new_tokens: int = 192
    """Token limit of one answer; an answer not closed by then is wrong."""
    batch: int = 64
    """Answers generated at a time."""
    seed: int = 2
    """Seed of the problems, of the draws and of the bootstrap."""
    samples: int = 1
    """Answers drawn to each problem, for pass@k and the majority vote."""
    temperature: float = 0.0
    """0 takes the most likely token each time."""
    top_p: float = 1.0
    """Share of the probability to draw from."""
    lengths: Sequence[int] = LENGTHS
    """recall: tokens of the prompts, about."""
    depths: Sequence[float] = DEPTHS
    """recall: where the facts that are asked for lie, 0 the beginning, 1 the end."""

    @property
    def sampling(self) -> Sampling:
        """How an answer is drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            samples=self.samples,
            seed=self.seed,
        )

    @property
    def asked(self) -> Asked:
        """How much the suite asks."""
        return Asked(
            problems=self.problems, seed=self.seed, lengths=self.lengths, depths=self.depths
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one model, per kind, per group and overall, and what decided them."""

    model: str
    suite: str
    layout: str
    tokens: int
    """Tokens the model was trained on since the teacher."""
    kinds: dict[str, KindScore]
    overall: KindScore
    groups: list[GroupScore]
    """By difficulty, length of the prompt and label of the suite."""
    cells: list[dict[str, float]]
    """By all labels of the suite together: the cells of a heat map."""
    paired: Comparison | None
    """Beside another model on the same problems."""
    notes: list[str]
    """What to know before believing the scores."""
    sampling: dict[str, Any]
    seed: int
    batch: int
    prompts_sha256: str
    """Of all prompts in their order: equal where the same was asked."""
    machine: dict[str, Any]
    versions: dict[str, str]
    seconds: float = field(compare=False)
    """Time it took; kept beside the result, so that the same evaluation writes the same file."""

    def to_json(self) -> dict[str, Any]:
        """Return what the result file holds: everything but the time."""
        values = asdict(self)
        values.pop("seconds")
        return values

    def ranked(self) -> Ranked | None:
        """Return what models are ranked by; None without log-likelihood."""
        one = self.overall
        if one.log_likelihood is None:
            return None
        return Ranked(self.model, one.log_likelihood, one.accuracy, one.standard_error)

    def __str__(self) -> str:
        rows = [*self.kinds.items(), ("overall", self.overall)]
        drawn = self.overall.pass_at or {}
        heads = "".join(f"  pass@{k:<4}" for k in drawn) + ("  majority" if drawn else "")
        lines = [f"{self.model}  {self.layout}", f"{'':<10}accuracy      log-likelihood  tokens"]
        lines[-1] += heads
        for name, one in rows:
            likelihood = "-" if one.log_likelihood is None else f"{one.log_likelihood:.4f}"
            line = f"{name:<10}{one.accuracy:.3f} ± {one.standard_error:.3f}  "
            line = (line + f"{likelihood:>10}  {one.mean_tokens:>6.0f}").ljust(WIDTH)
            line += "".join(f"  {value:<9.3f}" for value in (one.pass_at or {}).values())
            line += f"  {one.majority:.3f}" if one.majority is not None else ""
            lines.append(line.rstrip())
        if self.paired is not None:
            lines.append(str(self.paired))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


def run(
    model: Model | Subject,
    settings: EvaluateSettings,
    out: Path | None = None,
    *,
    name: str,
    tokens: int = 0,
    other: tuple[str, Sequence[Answer]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask `model` the held-out problems and score what it generates.

    Writes `out`.json and `out`/answers.jsonl with every generated answer, which the same call
    writes again byte for byte, and `out`/timing.json, if `out` is given.

    Args:
        other: name and answers of a model to compare with on the same problems.

    Raises:
        RecipeError: the suite is not known or asks nothing.
        RunError: the answers of `other` are to other problems.
    """
    started = time.monotonic()
    questions = ask(settings.suite, settings.asked)
    subject = InProcess.of(model) if isinstance(model, Model) else model
    answers = subject.answer(questions, settings.sampling, settings.batch, progress)
    scores, overall = score(answers)
    paired = None
    if other is not None:
        paired = compare(answers, other[1], other=other[0], seed=settings.seed)
    evaluation = Evaluation(
        model=name,
        suite=settings.suite,
        layout=subject.layout,
        tokens=tokens,
        kinds=scores,
        overall=overall,
        groups=group(answers),
        cells=cross(answers),
        paired=paired,
        notes=_notes(subject, answers, scores, paired, other),
        sampling=asdict(settings.sampling),
        seed=settings.seed,
        batch=settings.batch,
        prompts_sha256=hash_json([question.problem.prompt_text for question in questions]),
        machine=subject.machine(),
        versions=describe_versions(),
        seconds=time.monotonic() - started,
    )
    if out is not None:
        write_evaluation(evaluation, answers, out)
    return evaluation


class Scores(Results[Evaluation]):
    """Evaluations of several models, printed one below the other with what disagrees."""

    __slots__ = ()

    def __repr__(self) -> str:
        known = [ranked for one in self if (ranked := one.ranked()) is not None]
        warnings = [f"warning: {text}" for text in describe_disagreements(known)]
        return "\n".join([*map(str, self), *warnings])


def load_subject(
    model: Path | str, *, name: str, stock: bool = False, device: str | None = None
) -> InProcess:
    """Load a model with our class, or with one of transformers where only that holds it.

    Args:
        stock: take the class of transformers in any case.

    Raises:
        ModelError: it cannot be loaded, or has no tokenizer.
        MachineError: this machine has no such device.
    """
    place = choose_device(device)
    if stock or is_stock(model):
        return InProcess.load_stock(model, name=name, device=place)
    loaded = load(model, name=name)
    network: Any = loaded.network
    network.to(place)
    return InProcess.of(loaded)


def run_all(
    models: Sequence[Model | Subject],
    settings: EvaluateSettings,
    out: Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask all models the same problems, and compare each with the first, problem by problem.

    Args:
        out: folder for `<model>.json` and `<model>/answers.jsonl` of each.

    Raises:
        RecipeError: the suite is not known or asks nothing.
    """
    found: list[Evaluation] = []
    other: tuple[str, list[Answer]] | None = None
    for model in models:
        with TemporaryDirectory() as temporary:
            place = (Path(temporary) if out is None else out) / model.name
            found.append(
                run(model, settings, place, name=model.name, other=other, progress=progress)
            )
            if other is None:
                other = model.name, read_answers(place) or []
    return Scores(found)


def write_evaluation(evaluation: Evaluation, answers: Sequence[Answer], out: Path) -> None:
    """Write `out`/answers.jsonl, `out`/timing.json and, last, `out`.json."""
    lines = [json.dumps(one.to_json(), ensure_ascii=False) for one in answers]
    write_text(out / ANSWERS, "\n".join(lines) + "\n")
    write_json(out / TIMING, {"seconds": evaluation.seconds})
    write_json(out.with_name(f"{out.name}.json"), evaluation.to_json())


def read_answers(out: Path) -> list[Answer] | None:
    """Read the answers that `run` wrote under `out`; None where there are none."""
    path = out / ANSWERS
    return [Answer(**values) for values in read_jsonl(path)] if path.exists() else None


def _notes(
    subject: Subject,
    answers: Sequence[Answer],
    kinds: dict[str, KindScore],
    paired: Comparison | None,
    other: tuple[str, Sequence[Answer]] | None,
) -> list[str]:
    """Say where likelihood and answers disagree, and where prompts were longer than trained."""
    notes = []
    if paired is not None and other is not None:
        theirs, _ = score(other[1])
        for kind, one in kinds.items():
            pair = [(subject.name, one), (other[0], theirs[kind])]
            ranked = [
                Ranked(name, s.log_likelihood, s.accuracy, s.standard_error)
                for name, s in pair
                if s.log_likelihood is not None
            ]
            notes += [f"{kind}: {text}" for text in describe_disagreements(ranked)]
    window = getattr(subject, "training_window", None)
    beyond = [one for one in answers if window and one.prompt_tokens + one.num_tokens > window]
    if beyond:
        notes.append(
            f"{len(beyond)} of {len(answers)} answers end beyond {window} tokens, the longest row "
            "of the last training: converted layers never saw such lengths."
        )
    return notes
