"""Export: write a model in the layout another project reads, verified, or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hybridize import tasks
from hybridize.core.catalog import did_you_mean
from hybridize.core.errors import ModelError
from hybridize.core.exports import best_format, check_fit, find_target
from hybridize.core.gguf import QUANTS
from hybridize.core.whole_folder import whole_folder
from hybridize.engines.llama_cpp import find_file
from hybridize.exports.expected import make_expected, round_weights
from hybridize.exports.exported import Exported, Origin, find_origin, write_report
from hybridize.exports.folder import write_companions
from hybridize.exports.prompts import encode, make_prompts
from hybridize.exports.verify import Check, ask_engine, require, verify_folder
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.model import Model

__all__ = ["ExportSettings", "Exported", "Origin", "find_origin", "find_writer", "run"]

FORMATS = {
    "stock": "hybridize.exports.stock:write",
    "hybridize": "hybridize.exports.own:write",
    "gguf": "hybridize.exports.gguf:write",
    "gguf-unpadded": "hybridize.exports.gguf:write_unpadded",
    "apriel-h1": "hybridize.exports.apriel_h1:write",
}
"""Name -> "module:function" that writes a model into a folder; imported on use. See
`hybridize.exports` for what it is given and what it leaves to this stage."""
READERS = {
    "stock": ("transformers", "vllm"),
    "hybridize": ("transformers", "vllm"),
    "gguf": ("llama.cpp",),
    "gguf-unpadded": ("llama.cpp",),
    "apriel-h1": ("transformers", "vllm"),
}
"""Format -> programs that are asked in the verification, serving engines where installed."""

Write = Callable[[Model, Path, str | None], None]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What to write."""

    format: str | None = None
    """Name in FORMATS; None is the best that fits: stock, or else hybridize."""
    dtype: str | None = None
    """Type of the weights; None keeps the model's."""
    verify: bool = True
    """Whether the folder has to answer as the model does before it gets its name."""
    prompts: Sequence[str] = ()
    """Texts to verify with; none are problems of the built-in tasks."""


def run(
    model: Model, settings: ExportSettings, out: Path | str, *, origin: Origin | None = None
) -> Exported:
    """Write `model` into the folder `out`, which appears whole and verified, or not at all.

    Args:
        model: a teacher or a student.
        settings: what to write.
        out: folder; one that exists is replaced when all is done.
        origin: what goes with the model; see `find_origin`.

    Raises:
        ModelError: an unknown format, one that cannot hold the model exactly, or the folder does
            not answer as the model does.
        MachineError: the disk is full or refuses.
    """
    config = model.network.config.to_dict()
    name = best_format(config) if settings.format is None else settings.format
    write = find_writer(name)
    reasons = check_fit(config, name)
    if reasons:
        raise ModelError(f"model {model.name} does not fit --format {name}: {'; '.join(reasons)}.")
    target = find_target(config, name)
    assert target is not None, "check_fit lets no such model pass"
    tensors = model.network.state_dict().values()
    needed_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with whole_folder(out, needed_bytes=needed_bytes) as fresh:
        write(model, fresh, settings.dtype)
        write_companions(model, fresh, origin.texts if origin else {})
        checks, unchecked = _verify(model, settings, name, fresh)
        made = Exported(
            folder=Path(out),
            format=name,
            target=target,
            dtype=_find_dtype(model, settings),
            checks=checks,
            unchecked=unchecked,
        )
        write_report(model, made, fresh, origin.card if origin else None)
    return made


def find_writer(name: str) -> Write:
    """Return the writer of a format.

    Raises:
        ModelError: there is no such format.
    """
    if name not in FORMATS:
        near = did_you_mean(name, list(FORMATS))
        raise ModelError(f"{name!r} is not an export format. {near}Known: {', '.join(FORMATS)}.")
    module, function = FORMATS[name].split(":")
    write: Write = getattr(import_module(module), function)
    return write


def _verify(
    model: Model, settings: ExportSettings, name: str, folder: Path
) -> tuple[tuple[Check, ...], dict[str, str]]:
    """Ask every program that is at hand; return what they answered, and who was not asked."""
    programs = READERS.get(name, ())
    if not settings.verify:
        return (), dict.fromkeys(programs, "it was asked not to (--no-verify).")
    texts = settings.prompts or _draw_prompts()
    dtype = _find_dtype(model, settings)
    network = _round(model.network, settings.dtype, folder)
    expected = make_expected(network, make_prompts(model, texts))
    spellings, unchecked = encode(model, texts), {}
    checks: list[Check] = []
    for program in programs:
        if program == "transformers":
            found: Check | str = verify_folder(
                folder, expected, import_hybridize=name != "stock", spellings=spellings
            )
        else:
            # llama.cpp computes in the type of the weights; others in float32, as asked.
            is_rounded = program == "llama.cpp" and dtype != "float32"
            found = ask_engine(program, folder, expected, is_rounded=is_rounded)
        if isinstance(found, str):
            unchecked[program] = found
            continue
        require(found, model.name)
        checks.append(found)
    return tuple(checks), unchecked


def _round(network: HybridForCausalLM, dtype: str | None, folder: Path) -> HybridForCausalLM:
    """Return our class with the values that were written."""
    if dtype not in QUANTS:
        return round_weights(network, dtype)
    from hybridize.exports.gguf_back import read_back

    return read_back(network, find_file(folder))


def _find_dtype(model: Model, settings: ExportSettings) -> str:
    kept = model.network.model.embed_tokens.weight.dtype
    return settings.dtype or str(kept).removeprefix("torch.")


def _draw_prompts() -> tuple[str, ...]:
    """Return a held-out problem of each kind, as the chat template renders it."""
    return tuple(
        tasks.make(kind, seed=3, index=0, split="heldout").prompt_text for kind in tasks.KINDS
    )
