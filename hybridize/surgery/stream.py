"""Convert a model folder into another without ever holding a model: tensor by tensor.

What is copied unchanged goes from file to file; what is built is read, made and written at once.
The largest thing in memory is one mixer as it is drawn, or one tensor.
"""

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from hybridize.core.artifacts import write_json
from hybridize.core.layout import Layout
from hybridize.core.model_files import INDEX
from hybridize.core.whole_folder import whole_folder
from hybridize.models.folders import build_outline, find_folder, read_contents
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.loading import find_generation_config, find_tensors, find_tokenizer
from hybridize.models.mixers import Mixer
from hybridize.surgery.aligned import take_aligned
from hybridize.surgery.apply import draw_mixer, list_float32, prepare
from hybridize.surgery.fresh import FreshSettings
from hybridize.surgery.nodes import Copy, Fetch, Shape
from hybridize.surgery.shards import Place, ShardWriter, list_places, read_tensor
from hybridize.surgery.weight_map import WeightMap

SHARD_BYTES = 5_000_000_000
"""Largest file that is written by default, a larger tensor aside; that of Hugging Face."""
EMBEDDING = "model.embed_tokens.weight"
"""The tensor whose dtype is that of the model."""
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json")
VOCABULARY_FILES = ("vocab.*", "merges.txt", "chat_template.*")
Stored = Mapping[str, tuple[torch.dtype, Shape]]
Progress = Callable[[int, int], None]
"""Called with the bytes written and the bytes in all."""


def stream(
    folder: Path | str,
    layout: Layout,
    settings: FreshSettings,
    out: Path | str,
    *,
    source: Path | str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> WeightMap:
    """Write the folder of a student: what loading, `convert` and saving would give, bit for bit.

    Args:
        folder: a teacher or a student: a folder, a hub id, or "shipped".
        layout: the mixer of each layer.
        out: folder to write; it appears whole or not at all, and `folder` itself is allowed.
        source: the teacher, whose attention is read; None is `folder`.
        dtype: of the student; None keeps that of the embedding.
        shard_bytes: largest file to write, a larger tensor aside.

    Returns:
        the weight map, which is also written into the folder.

    Raises:
        ModelError: see `convert`; or a folder is incomplete or damaged.
        MachineError: there is no room for the student.
    """
    folder, out = find_folder(folder), Path(out)
    origins = {"student": _Stored(folder, dtype)}
    origins["teacher"] = _Stored(find_folder(source), dtype) if source else origins["student"]
    before, teacher = origins["student"].model, origins["teacher"].model
    weights, student = prepare(
        before, layout, init=settings.init, options=settings.options, source=teacher
    )
    student.generation_config = find_generation_config(folder) or student.generation_config
    find_tokenizer(folder)  # raises where it does not fit
    fetch = _fetch_from(origins, settings, student, before.layout.diff(layout))
    stored = _list_stored(student, origins["student"].dtype_of(EMBEDDING))
    with whole_folder(out, needed_bytes=sum(map(_count_bytes, stored.values()))) as fresh:
        _write_tensors(fresh, weights, stored, origins, fetch, shard_bytes, progress)
        student.generation_config.save_pretrained(fresh)
        for pattern in (*TOKENIZER_FILES, *VOCABULARY_FILES):
            for file in filter(Path.is_file, folder.glob(pattern)):
                shutil.copyfile(file, fresh / file.name)
        write_json(fresh / "weight_map.json", weights.to_json())
        student.config.architectures = [type(student).__name__]
        student.config.save_pretrained(fresh)
    return weights


def _fetch_from(
    origins: Mapping[str, "_Stored"],
    settings: FreshSettings,
    student: HybridForCausalLM,
    layers: Sequence[int],
) -> Fetch:
    """Return what gives a tensor of any origin; `layers` are those that are converted."""
    read: dict[str, Callable[[str], Tensor]] = {
        "init": _Drawn(student, settings.seed),
        "aligned": take_aligned(settings.init, settings.aligned, student, layers),
        **{name: origin.read for name, origin in origins.items()},
    }
    return lambda origin, name: read[origin](name)


class _Stored:
    """A model in a folder: its names and shapes, and its tensors one by one."""

    def __init__(self, folder: Path, dtype: torch.dtype | None) -> None:
        contents = read_contents(folder)
        self.model, self.dtype = build_outline(contents), dtype
        self.made, rows = find_tensors(contents, self.model)
        self.places = list_places(contents, rows)
        self.small = list_float32(self.model)
        self.model.config.dtype = self.dtype_of(EMBEDDING)

    def read(self, name: str) -> Tensor:
        """Read a tensor as loading the model would."""
        if name in self.made:
            return self.made[name]
        return read_tensor(name, self.places[name]).to(self.dtype_of(name))

    def find(self, name: str, dtype: torch.dtype) -> Place | None:
        """Return where a tensor is stored if it need not change to be of this dtype."""
        place = self.places.get(name)
        same = place is not None and place.dtype == self.dtype_of(name) == dtype
        return place if same else None

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype a tensor has once it is loaded."""
        if name in self.small:
            return torch.float32
        return self.dtype or self.places[name].dtype


class _Drawn:
    """The mixers as they are drawn, of which only the last is kept."""

    def __init__(self, student: HybridForCausalLM, seed: int) -> None:
        modules = student.named_modules()
        self.mixers = {name: module for name, module in modules if isinstance(module, Mixer)}
        self.owners = {
            f"{name}.{key}": name
            for name, mixer in self.mixers.items()
            for key in mixer.state_dict()
        }
        self.seed = seed
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name not in self.tensors:
            owner = self.owners[name]
            self.tensors.clear()
            mixer = copy.deepcopy(self.mixers[owner])
            self.tensors |= draw_mixer(mixer, owner, self.seed)
        return self.tensors[name]


def _list_stored(student: HybridForCausalLM, dtype: torch.dtype) -> Stored:
    """Map each tensor to be written to its dtype and shape; a tied head is not written."""
    small = list_float32(student)
    tied = {"lm_head.weight"} if student.config.tie_word_embeddings else set()
    return {
        name: (torch.float32 if name in small else dtype, tuple(tensor.shape))
        for name, tensor in student.state_dict().items()
        if name not in tied
    }


def _count_bytes(entry: tuple[torch.dtype, Shape]) -> int:
    return entry[0].itemsize * prod(entry[1])


def _write_tensors(
    folder: Path,
    weights: WeightMap,
    stored: Stored,
    origins: Mapping[str, _Stored],
    fetch: Fetch,
    shard_bytes: int,
    progress: Progress | None,
) -> None:
    outlines = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (dtype, shape) in stored.items()
    }
    split = split_torch_state_dict_into_shards(outlines, max_shard_size=shard_bytes)
    nodes = dict(weights.entries)
    done, total = 0, sum(map(_count_bytes, stored.values()))
    for file, names in split.filename_to_tensors.items():
        with ShardWriter(folder / file, {name: stored[name] for name in names}) as shard:
            for name in names:
                node, dtype = nodes[name], stored[name][0]
                place = None
                if isinstance(node, Copy) and node.origin in origins:
                    place = origins[node.origin].find(node.name, dtype)
                if place is None:
                    shard.write(name, node.evaluate(fetch).to(dtype))
                else:
                    shard.copy(name, place)
                done += _count_bytes(stored[name])
                if progress is not None:
                    progress(done, total)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX, index)
