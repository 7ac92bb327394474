"""lm-evaluation-harness over a model of ours: HarnessModel, and what it found as plain values."""

import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from hybridize.core.benchmarks import find_benchmark
from hybridize.core.errors import MachineError, RecipeError
from hybridize.core.suites import need_harness
from hybridize.evaluation.endpoint import Endpoint
from hybridize.evaluation.sampling import Sampling
from hybridize.evaluation.subjects import InProcess
from hybridize.evaluation.texts import continue_texts, encode, encode_pair, score_pairs

TASKS = Path(__file__).parent / "harness_tasks"
"""Task files of this package, in the harness's own format."""
WINDOW = 2048
"""Tokens of text scored at once where a model does not say how long its text may be."""
HUB_SECONDS = 3.0
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def make_harness_model(subject: InProcess | Endpoint, *, batch: int, sampling: Sampling) -> Any:
    """Return the `LM` that the harness asks, over a model in this process or on a server.

    Args:
        sampling: where a task does not say itself how it is answered.
    """
    from lm_eval.api.model import LM

    class HarnessModel(LM):
        """Answers the harness's three kinds of requests."""

        tokenizer_name = type(subject.tokenizer).__name__

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Score each continuation after its context."""
            pairs = [encode_pair(subject.tokenizer, *request.args) for request in requests]
            return score_pairs(subject, pairs, batch)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Score each text, in windows that each go on where the last ended."""
            return [
                sum(value for value, _ in score_pairs(subject, _windows(subject, text), batch))
                for text in (request.args[0] for request in requests)
            ]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Continue each text up to its stops; texts with the same settings go together."""
            return _generate(subject, [request.args for request in requests], batch, sampling)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            """Write a conversation as the model's own template has it."""
            text: str = subject.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            return text

    return HarnessModel()


def run_tasks(
    subject: InProcess | Endpoint,
    tasks: Sequence[str],
    *,
    limit: int | None,
    batch: int,
    seed: int,
    sampling: Sampling,
) -> dict[str, Any]:
    """Run tasks of the harness, ours among them; return its results.

    Raises:
        RecipeError: a task is not known.
        MachineError: the harness is not installed, or a task's data is not on this machine.
    """
    need_harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(TASKS))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise RecipeError(
            f"lm-eval has no task {', '.join(unknown)}. `lm-eval ls tasks` lists its own; ours are "
            f"{', '.join(list_own_tasks())}."
        )
    missing = _load_data(manager, tasks)
    if missing:
        raise MachineError("\n".join(missing))
    model = make_harness_model(subject, batch=batch, sampling=sampling)
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=1000,
        **dict.fromkeys(SEEDS, seed),
    )
    return found


def list_own_tasks() -> list[str]:
    """Return the names of the tasks in `harness_tasks`."""
    files = sorted(path for path in TASKS.glob("*.yaml") if not path.name.startswith("_"))
    return [f"hybridize_{path.stem}" for path in files]


def _load_data(manager: Any, tasks: Sequence[str]) -> list[str]:
    """Load each task's data; say what to run for each whose data is not here."""
    missing = []
    known = {task: found for task in tasks if (found := find_benchmark(task)) and found.dataset}
    offline = bool(known) and not _reaches_hub()
    for task in tasks:
        entry = known.get(task)
        reason = "its data is not on this machine, and the hub cannot be reached"
        if entry is None or not offline or _is_cached(str(entry.dataset)):
            try:
                manager.load([task])
                continue
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "Download its data where there is a network."
        if entry is not None:
            remedy = f"Fetch it once: {entry.download}"
            remedy += f" ({entry.note})" if entry.note else ""
        missing.append(f"task {task} cannot be loaded ({reason}). {remedy}")
    return missing


def _reaches_hub() -> bool:
    """Tell whether the hub's address answers: where it does not, each task would try for long."""
    parts = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((str(parts.hostname), parts.port or 443), HUB_SECONDS):
            return True
    except OSError:
        return False


def _is_cached(dataset: str) -> bool:
    folder = f"datasets--{dataset.replace('/', '--')}"
    return (Path(constants.HF_HUB_CACHE) / folder).is_dir()


def _generate(
    subject: InProcess | Endpoint,
    asked: Sequence[tuple[str, Mapping[str, Any]]],
    batch: int,
    sampling: Sampling,
) -> list[str]:
    groups: dict[tuple[Sampling, tuple[str, ...]], list[int]] = {}
    for place, (_, settings) in enumerate(asked):
        groups.setdefault(_read_settings(settings, sampling), []).append(place)
    made: dict[int, str] = {}
    for (how, stops), places in groups.items():
        places.sort(key=lambda place: len(asked[place][0]))
        for first in range(0, len(places), batch):
            part = places[first : first + batch]
            texts = continue_texts(subject, [asked[place][0] for place in part], stops, how)
            made.update(zip(part, texts, strict=True))
    return [made[place] for place in range(len(asked))]


def _read_settings(
    settings: Mapping[str, Any], sampling: Sampling
) -> tuple[Sampling, tuple[str, ...]]:
    """Return what a request of the harness says of its answer, and where it stops."""
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    limit = settings.get("max_gen_toks") or settings.get("max_new_tokens")
    drawn = settings.get("do_sample", False)
    return Sampling(
        max_new_tokens=int(limit or sampling.max_new_tokens),
        temperature=float(settings.get("temperature") or 1.0) if drawn else 0.0,
        top_p=float(settings.get("top_p") or 1.0) if drawn else 1.0,
        seed=sampling.seed,
    ), tuple(stop for stop in stops if stop)


def _windows(subject: InProcess | Endpoint, text: str) -> list[tuple[list[int], list[int]]]:
    """Cut a text into continuations that each follow as much of the text as fits."""
    tokenizer = subject.tokenizer
    ids = encode(tokenizer, text)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else ids[0]
    if ids[:1] == [start]:
        ids = ids[1:]
    whole = [start, *ids]
    size = _window_size(subject)
    pairs = []
    for first in range(1, len(whole), size):
        last = min(first + size, len(whole))
        begin = max(0, last - size - 1)
        pairs.append((whole[begin:first], whole[first:last]))
    return pairs


def _window_size(subject: InProcess | Endpoint) -> int:
    if isinstance(subject, Endpoint):
        return WINDOW
    most: int | None = getattr(subject.network.config, "max_position_embeddings", None)
    return (most or WINDOW) - 1
