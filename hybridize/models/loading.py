"""Load a teacher or a student from a folder: safetensors only, no code, no pickle."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from hybridize.core.apriel_h1 import Rows
from hybridize.core.errors import ModelError
from hybridize.models.families import find_family
from hybridize.models.folders import Contents, build_outline, find_folder, read_contents
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.mixers import Mixer

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
)


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    allow_nan: bool = False,
) -> HybridForCausalLM:
    """Load a teacher of a known family as an all-attention student, or a student as it is.

    Published Apriel-H1 checkpoints load as students too; see `hybridize.core.apriel_h1`.

    Args:
        path: a folder, a hub id, or "shipped".
        dtype: None keeps the dtype the tensors are saved in; small decay parameters stay float32.
        revision: commit or tag of a hub id.
        allow_nan: load weights that are not finite too, to look at a model that diverged.

    Raises:
        ModelError: a file is missing or broken, a tensor is missing, too many, of a wrong shape or
            not finite, the family is not known, or the weights are not in safetensors.
    """
    contents = read_contents(find_folder(path, revision))
    model = build_outline(contents)
    tensors = read_tensors(contents, model, dtype=dtype, allow_nan=allow_nan)
    model.load_state_dict(tensors, strict=False, assign=True)
    # Inverse frequencies are computed, not saved, so they are still on the meta device.
    teacher = contents.config.teacher
    model.model.rotary_emb = find_family(teacher.model_type).rotary(config=teacher)
    model.tie_weights()
    model.config.dtype = model.model.embed_tokens.weight.dtype
    settings = find_generation_config(contents.folder)
    if settings is not None:
        model.generation_config = settings
    return model.eval()


def find_generation_config(folder: Path) -> GenerationConfig | None:
    """Read the generation settings of a model folder, or return None where it has none.

    Raises:
        ModelError: there is a file of them, but it cannot be read.
    """
    if not (folder / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {folder}: generation_config.json cannot be read ({reason}). "
            "Copy it again, or remove it."
        ) from error


def load_outline(folder: str | Path) -> HybridForCausalLM:
    """Return the model of a folder on the meta device: names and shapes; no weights are read.

    Raises:
        ModelError: there is no config.json, or it is of no known family.
    """
    return build_outline(read_contents(Path(folder), with_tensors=False))


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, a hub id or "shipped".

    Raises:
        ModelError: there is no tokenizer, or it has more tokens than the model has embeddings.
    """
    folder = find_folder(path, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {folder}: the tokenizer cannot be read ({reason}). "
            "Copy the teacher's tokenizer files there."
        ) from error
    vocab_size = read_contents(folder, with_tensors=False).config.vocab_size
    # An embedding may have more rows, as padding; a token may have a number beyond their count.
    num_ids = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if num_ids > vocab_size:
        raise ModelError(
            f"model {folder}: the tokenizer has {num_ids} tokens, but the embedding has "
            f"{vocab_size} rows. Use the tokenizer that belongs to the model."
        )
    return tokenizer


def find_tokenizer(
    path: str | Path, *, revision: str | None = None
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model, or return None where its folder has no file of one.

    Raises:
        ModelError: there is a tokenizer, but see `load_tokenizer`.
    """
    folder = find_folder(path, revision)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    return load_tokenizer(folder)


def read_tensors(
    contents: Contents,
    model: HybridForCausalLM | None = None,
    *,
    dtype: torch.dtype | None = None,
    allow_nan: bool = False,
) -> dict[str, Tensor]:
    """Read every tensor of a model by the model's names, checked against its shapes.

    Args:
        contents: of its folder.
        model: on the meta device, for the names and shapes; made where it is not given.
        dtype: None keeps the dtype the tensors are saved in; small decay parameters are float32.
        allow_nan: whether weights may be not finite.

    Raises:
        ModelError: see `load_model`.
    """
    model = model or build_outline(contents)
    made, plan = find_tensors(contents, model)
    small, tensors = _float32_names(model), {}
    for name, tensor in chain(made.items(), _read(contents, plan)):
        if not allow_nan and not is_finite(tensor):
            raise ModelError(
                f"model {contents.folder}: {name} holds values that are not finite. "
                "Take an earlier checkpoint of the training that made it."
            )
        goal = torch.float32 if name in small else dtype
        tensors[name] = tensor if goal is None else tensor.to(goal)
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all values are finite, at a twentieth of what looking at each alone takes.

    A sum keeps what is not finite among its terms; where it overflows of itself, each is looked at.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def find_tensors(
    contents: Contents, model: HybridForCausalLM
) -> tuple[dict[str, Tensor], dict[str, Rows]]:
    """Find each tensor of a model: those that are in no file, made, and the rows of the others.

    Raises:
        ModelError: a tensor is missing, too many, or of a wrong shape or type.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if contents.config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    made = _fill_left_out(contents, wanted)
    plan = {
        name: _plan(contents, name, shape) for name, shape in wanted.items() if name not in made
    }
    _check_names(contents, plan)
    _check_tied(contents)
    return made, {name: rows for name, rows in plan.items() if rows is not None}


def _fill_left_out(contents: Contents, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Make the MLP of layers that are left out: with zero weights it adds exactly nothing."""
    prefixes = tuple(f"model.layers.{layer}." for layer in contents.left_out)
    embedding = contents.tensors.get("model.embed_tokens.weight")
    dtype = DTYPES.get(embedding.dtype if embedding else "", torch.float32)
    return {
        name: (torch.ones if "norm" in name else torch.zeros)(shape, dtype=dtype)
        for name, shape in wanted.items()
        if name.startswith(prefixes)
    }


DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32},
    **{"F16": torch.float16, "BF16": torch.bfloat16},
}
"""Type in a header -> dtype, for what weights may be stored in."""


def _plan(contents: Contents, name: str, wanted: tuple[int, ...]) -> Rows | None:
    """Return the rows of a file's tensor that are tensor `name`; None is one that is missing.

    Raises:
        ModelError: the file's tensor has another shape, or a type that is none of weights.
    """
    rows = contents.rows.get(name)
    place = contents.tensors.get(rows.name if rows else name)
    if place is None:
        return None
    rows = rows or Rows(name, 0, (*place.shape, 0)[0])
    shape = (rows.stop - rows.start, *place.shape[1:]) if place.shape else ()
    if shape != wanted:
        raise ModelError(
            f"model {contents.folder}: {name} in {place.file.name} has shape {shape}, but "
            f"config.json asks for {wanted}. The weights and config.json belong to different "
            "models."
        )
    if place.dtype not in DTYPES:
        raise ModelError(
            f"model {contents.folder}: {name} is stored as {place.dtype}. Only weights stored as "
            f"{', '.join(DTYPES)} can be loaded."
        )
    return rows


def _check_names(contents: Contents, plan: Mapping[str, Rows | None]) -> None:
    """Check that no tensor of the model is missing from the files, and none of theirs unknown."""
    missing = sorted(name for name, rows in plan.items() if rows is None)
    if missing:
        raise ModelError(
            f"model {contents.folder}: {len(missing)} tensors are missing, the first is "
            f"{missing[0]}. Copy all shards, or check config.json."
        )
    passed_by = tuple(f"model.layers.{layer}." for layer in contents.left_out)
    known = {rows.name for rows in plan.values() if rows is not None}
    extra = sorted(
        name
        for name in contents.tensors.keys() - known
        if not name.endswith("rotary_emb.inv_freq") and not name.startswith(passed_by)
    )
    if contents.config.tie_word_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
    if extra:
        raise ModelError(
            f"model {contents.folder}: {len(extra)} tensors belong to no part of the model that "
            f"config.json describes, the first is {extra[0]}. "
            "Copy the config.json that belongs to the weights."
        )


def _check_tied(contents: Contents) -> None:
    """Check that a head which config.json ties to the embedding is it, if the files hold one."""
    pair = "lm_head.weight", "model.embed_tokens.weight"
    if not contents.config.tie_word_embeddings or pair[0] not in contents.tensors:
        return
    plan = {name: Rows(name, 0, 0) for name in pair}
    head, embedding = (tensor for _, tensor in _read(contents, plan))
    if not torch.equal(head, embedding):
        raise ModelError(
            f"model {contents.folder}: config.json says tie_word_embeddings, but {pair[0]} differs "
            f"from {pair[1]}. Copy the config.json that belongs to the weights."
        )


def _read(contents: Contents, plan: Mapping[str, Rows]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a plan, file by file."""
    by_file: dict[Path, dict[str, Rows]] = {}
    for name, rows in plan.items():
        by_file.setdefault(contents.tensors[rows.name].file, {})[name] = rows
    for path, parts in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name, rows in parts.items():
                    tensor = file.get_tensor(rows.name)
                    yield name, tensor[rows.start : rows.stop] if name in contents.rows else tensor
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model {contents.folder}: {path.name} is truncated or not a safetensors file "
                f"({error}). Copy it again."
            ) from error


def _float32_names(model: HybridForCausalLM) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, Mixer)
        for name in module.FLOAT32
    }
