"""Verification: what an exported folder answers in another program, against our own class.

Legend: T tokens, V vocabulary.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from hybridize.core.artifacts import read_json, write_json
from hybridize.core.errors import MachineError, ModelError
from hybridize.engines import Client, Sampling, ServeSettings, find_engine, serving
from hybridize.exports import reader
from hybridize.exports.expected import Expected

LOGITS_TOLERANCE = 1e-4
"""Greatest difference of a float32 logit in transformers, times the spread of the logits where that
is above 1: rounding grows with the numbers."""
ENGINE_TOLERANCE = 1e-3
"""Greatest difference of the log-probability of a token in a serving engine, likewise."""
ROUNDED_TOLERANCE = 0.5
"""The same where the engine computes in a type with less precision than ours, such as the blocks of
q8_0: a wrong layout is off by several nats."""
_LAST_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one program answered, held against what our own class does."""

    reader: str
    """The program: transformers, vllm or llama.cpp."""
    versions: dict[str, str]
    class_name: str | None
    """The class that the program made, where it tells."""
    without_hybridize: bool
    """Whether it was proved that no code of ours ran."""
    deviation: float
    """Greatest difference found, of logits or (engines) of log-probabilities."""
    allowed: float
    tokens_compared: int
    """Whose logits, or log-probabilities, were compared."""
    num_prompts: int
    prompt_tokens: tuple[int, ...]
    """Lengths of the prompts."""
    new_tokens: int
    """Length of each greedy continuation."""
    same: int
    """Continuations that are the same, token for token."""
    ties: int
    """Continuations that part where two tokens are nearer than what is allowed."""
    is_rounded: bool = False
    """Whether the program computes in a type with less precision; continuations may part then."""

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        answered = self.is_rounded or self.same + self.ties == self.num_prompts
        return self.deviation <= self.allowed and answered

    def __str__(self) -> str:
        kind = "logits" if self.reader == "transformers" else "log-probabilities"
        versions = " ".join(f"{name} {version}" for name, version in self.versions.items())
        alone = ", without hybridize" if self.without_hybridize else ""
        ties = f" ({self.ties} part at a tie)" if self.ties else ""
        return (
            f"{self.reader}{alone} ({versions}): {kind} of {self.tokens_compared} tokens differ by "
            f"{self.deviation:.1e} at most, {self.allowed:.1e} allowed; {self.same} of "
            f"{self.num_prompts} continuations of {self.new_tokens} tokens are the same{ties}"
        )


def verify_folder(
    folder: Path,
    expected: Expected,
    *,
    import_hybridize: bool,
    spellings: Mapping[str, Sequence[int]] | None = None,
) -> Check:
    """Load a folder with AutoModelForCausalLM in a process of its own and compare.

    Args:
        folder: complete with config.json.
        expected: of the same weights.
        import_hybridize: whether the reader imports this package first; else it cannot.
        spellings: texts and their tokens, as the folder's tokenizer has to read them.

    Raises:
        ModelError: transformers cannot load or run the folder, or reads a text as other tokens.
    """
    with tempfile.TemporaryDirectory(prefix="hybridize-verify-") as scratch:
        request, out = Path(scratch) / "request.json", Path(scratch) / "answer"
        write_json(
            request,
            {
                "folder": str(folder.resolve()),
                "prompts": expected.prompts,
                "pad": expected.pad,
                "never": expected.never,
                "tokens_compared": expected.tokens_compared,
                "new_tokens": len(expected.continuations[0]),
                "import_hybridize": import_hybridize,
                "texts": list(spellings or ()),
                "package_parent": str(Path(__file__).parents[2]),
            },
        )
        _run([sys.executable, reader.__file__, str(request), str(out)])
        logits = load_file(f"{out}.safetensors")
        answer = read_json(f"{out}.json")
    for (text, tokens), found in zip((spellings or {}).items(), answer["tokens"], strict=True):
        if list(tokens) != found:
            raise ModelError(
                f"the exported tokenizer reads {text[:40]!r} as other tokens than the model's own. "
                "Save the tokenizer anew with this version of transformers."
            )
    allowed = LOGITS_TOLERANCE * max(1.0, expected.spread)
    same, ties = count_same(expected, answer["continuations"], allowed)
    return Check(
        reader="transformers",
        versions=answer["versions"],
        class_name=answer["class"],
        without_hybridize=not answer["hybridize_imported"],
        deviation=find_deviation(expected.logits, [logits[str(n)] for n in range(len(logits))]),
        allowed=allowed,
        tokens_compared=sum(len(logits_TV) for logits_TV in expected.logits),
        same=same,
        ties=ties,
        **_describe(expected),
    )


def why_unchecked(name: str, model: Path) -> str | None:
    """Return why an engine cannot be asked here, or None where it can."""
    engine = find_engine(name)
    return "it is not installed." if engine.version() is None else engine.why_not(model)


def verify_engine(name: str, model: Path, expected: Expected, *, is_rounded: bool = False) -> Check:
    """Serve a folder or file in an engine, ask it everything at once, and compare.

    Args:
        name: in `hybridize.engines.ENGINES`; see `why_unchecked`.
        model: what the engine serves: a folder, or a file of weights.
        expected: of the same weights.
        is_rounded: see `Check`.

    Raises:
        MachineError: the engine does not start or breaks off.
    """
    engine = find_engine(name)
    new_tokens = len(expected.continuations[0])
    longest = max(map(len, expected.prompts)) + new_tokens
    settings = ServeSettings(
        model=model,
        dtype="float32",
        context_tokens=longest,
        max_sequences=len(expected.prompts),
    )
    sampling = Sampling(max_tokens=new_tokens, ignore_end=True, logprobs=1)
    with serving(engine, settings) as server, ThreadPoolExecutor(len(expected.prompts)) as pool:
        fields = dict(engine.request_fields)
        if expected.never:
            fields["logit_bias"] = {str(token): -100 for token in expected.never}
        client = Client(server.url, fields=fields)
        answers = list(pool.map(lambda prompt: client.complete(prompt, sampling), expected.prompts))
    tolerance = ROUNDED_TOLERANCE if is_rounded else ENGINE_TOLERANCE
    allowed = tolerance * max(1.0, expected.spread)
    made = [list(answer.token_ids) for answer in answers]
    same, ties = count_same(expected, made, 0 if is_rounded else allowed)
    differences = _list_differences(expected, made, [answer.logprobs for answer in answers])
    return Check(
        reader=name,
        versions={name: engine.version() or ""},
        class_name=None,
        without_hybridize=False,
        deviation=max(differences, default=float("inf")),
        allowed=allowed,
        tokens_compared=len(differences),
        same=same,
        ties=ties,
        is_rounded=is_rounded,
        **_describe(expected),
    )


def ask_engine(
    name: str, folder: Path, expected: Expected, *, is_rounded: bool = False
) -> Check | str:
    """Return what a serving engine answers, or why it was not asked; see `verify_engine`."""
    reason = why_unchecked(name, folder)
    if reason is not None:
        return reason.removeprefix(f"{folder}: ")
    try:
        return verify_engine(name, folder, expected, is_rounded=is_rounded)
    except MachineError as error:
        # The first line says what happened, the last one of the log most often why.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "it did not run: " + " ... ".join(dict.fromkeys((lines[0], lines[-1])))


def require(check: Check, name: str) -> None:
    """Raise ModelError, in one sentence, if a check of the model `name` has not passed."""
    if not check.passed:
        raise ModelError(
            f"model {name} answers otherwise once exported: {check}. Nothing was written; report "
            "it with the recipe, and use --format hybridize meanwhile."
        )


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()][-_LAST_LINES:]
    if done.returncode < 0:
        raise MachineError(
            f"the process that verifies the export was ended by signal {-done.returncode}, most "
            "likely for want of memory: it holds the model a second time, in float32. Make room, "
            "or export with --no-verify."
        )
    raise ModelError("transformers cannot run the exported folder: " + " / ".join(lines))


def _describe(expected: Expected) -> dict[str, Any]:
    return {
        "num_prompts": len(expected.prompts),
        "prompt_tokens": tuple(map(len, expected.prompts)),
        "new_tokens": len(expected.continuations[0]),
    }


def find_deviation(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the greatest difference; infinite where a number is missing or none."""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return float("inf")
    differences_TV = [(ours - theirs).abs() for ours, theirs in zip(wanted, found, strict=True)]
    worst = max(float(differences.max()) for differences in differences_TV)
    finite = all(bool(differences.isfinite().all()) for differences in differences_TV)
    return worst if finite else float("inf")


def count_same(
    expected: Expected, made: Sequence[Sequence[int]], allowed: float
) -> tuple[int, int]:
    """Count the continuations that are the same, and those that part at a tie."""
    same = ties = 0
    for wanted, leads, found in zip(expected.continuations, expected.leads, made, strict=True):
        agreed = _count_agreed(wanted, found)
        if agreed == len(wanted):
            same += 1
        elif leads[agreed] <= allowed and len(found) == len(wanted):
            ties += 1
    return same, ties


def _count_agreed(wanted: Sequence[int], found: Sequence[int]) -> int:
    """Count the tokens up to the first that differs."""
    pairs = zip(wanted, found, strict=False)
    return next(
        (place for place, (ours, theirs) in enumerate(pairs) if ours != theirs),
        min(len(wanted), len(found)),
    )


def _list_differences(
    expected: Expected, made: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]
) -> list[float]:
    """List the differences of log-probabilities of tokens that both took in the same place."""
    differences = []
    for wanted, ours, found, theirs in zip(
        expected.continuations, expected.logprobs, made, logprobs, strict=True
    ):
        agreed = _count_agreed(wanted, found)
        differences += [abs(a - b) for a, b in zip(ours[:agreed], theirs[:agreed], strict=False)]
    return differences
