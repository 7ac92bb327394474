"""Make a student: plan its weight map, check it, and fill a model with the tensors it names."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.core.errors import ModelError
from hybridize.core.layout import Layout
from hybridize.models.families import find_family
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM
from hybridize.models.mixers import Mixer
from hybridize.surgery.aligned import take_aligned
from hybridize.surgery.from_attention import Entries, map_mixer
from hybridize.surgery.nodes import Copy, Shape
from hybridize.surgery.weight_map import WeightMap


def convert(
    model: HybridForCausalLM,
    layout: Layout,
    *,
    init: str = "from_attention",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: HybridForCausalLM | None = None,
    aligned: Path | None = None,
) -> HybridForCausalLM:
    """Return a new model in which the layers whose mixer differs from `layout` are converted.

    Args:
        model: a teacher or a student; it is not changed, and no tensor is shared with it.
        layout: the mixer of each layer.
        init: "from_attention" fills a mixer from the attention it replaces, "random" does not,
            "aligned" takes one that was trained before.
        options: options of the mixer kinds that are added; none are those of the layers that hold
            the kind already.
        seed: of what is drawn; a layer draws the same values whichever others are converted.
        source: the teacher, whose attention is read; None is `model` itself.
        aligned: folder of the mixers of init "aligned".

    Raises:
        ModelError: the layout does not fit the model, a mixer does not fit its attention, or no
            mixer of the kind and options was aligned for a layer.
    """
    source = model if source is None else source
    weights, student = prepare(model, layout, init=init, options=options, source=source)
    taken = take_aligned(init, aligned, student, model.layout.diff(layout))
    drawn = _draw_mixers(student, seed)
    origins = {"student": model.state_dict(), "teacher": source.state_dict(), "init": drawn}

    def fetch(origin: str, name: str) -> Tensor:
        return taken(name) if origin == "aligned" else origins[origin][name]

    goal = model.model.embed_tokens.weight
    small = list_float32(student)
    tensors = {}
    for name, node in weights.entries:
        dtype = torch.float32 if name in small else goal.dtype
        tensors[name] = node.evaluate(fetch).detach().to(goal.device, dtype, copy=True)
    student.load_state_dict(tensors, assign=True)
    teacher = student.config.teacher
    student.model.rotary_emb = find_family(teacher.model_type).rotary(config=teacher)
    student.model.rotary_emb.to(goal.device)
    student.tie_weights()
    student.generation_config = model.generation_config
    return student.train(model.training)


def plan_weights(
    model: HybridForCausalLM,
    layout: Layout,
    *,
    init: str = "from_attention",
    options: Mapping[str, Any] | None = None,
    source: HybridForCausalLM | None = None,
) -> WeightMap:
    """Return the checked weight map that `convert` would carry out, without reading a tensor.

    Raises:
        ModelError: see `convert`.
    """
    source = model if source is None else source
    return prepare(model, layout, init=init, options=options, source=source)[0]


def prepare(
    model: HybridForCausalLM,
    layout: Layout,
    *,
    init: str,
    options: Mapping[str, Any] | None,
    source: HybridForCausalLM,
) -> tuple[WeightMap, HybridForCausalLM]:
    """Return the checked weight map of a conversion, and its student on the meta device.

    Only names and shapes are read, so that both models may be on the meta device too.

    Raises:
        ModelError: see `convert`.
    """
    return _plan(model, _make_config(model, layout, options), init, source)


def outline(
    model: HybridForCausalLM, layout: Layout, *, options: Mapping[str, Any] | None = None
) -> HybridForCausalLM:
    """Return the student `convert` would make, on the meta device: names and shapes, no values.

    Raises:
        ModelError: see `convert`.
    """
    with torch.device("meta"):
        return HybridForCausalLM(_make_config(model, layout, options))


def _make_config(
    model: HybridForCausalLM, layout: Layout, options: Mapping[str, Any] | None
) -> HybridConfig:
    new_kinds = {layout.mixers[layer] for layer in model.layout.diff(layout)} - {"attention"}
    kept_kinds = {a for a, b in zip(model.layout.mixers, layout.mixers, strict=True) if a == b}
    known = dict(model.config.mixer_options)
    for kind in new_kinds:
        wanted = dict(options or (known.get(kind, {}) if kind in kept_kinds else {}))
        if kind in kept_kinds and wanted != known.get(kind, {}):
            raise ModelError(
                f"mixer {kind}: the options {wanted} differ from {known.get(kind, {})} of the "
                "layers already converted. One model has one set of options for each kind."
            )
        known[kind] = wanted
    values = {name: value for name, value in known.items() if name in layout.mixers}
    return HybridConfig(
        teacher=model.config.teacher.to_dict(),
        mixers=list(layout.mixers),
        mixer_options=values,
        last_training_window=model.config.last_training_window,
        dtype=model.config.dtype,
    )


def _plan(
    model: HybridForCausalLM, config: HybridConfig, init: str, source: HybridForCausalLM
) -> tuple[WeightMap, HybridForCausalLM]:
    with torch.device("meta"):
        student = HybridForCausalLM(config)
    _check_source(model, source)
    before, teacher = _get_shapes(model), _get_shapes(source)
    wanted = _get_shapes(student)
    made: Entries = {}
    dropped: dict[str, str] = {}
    read: set[str] = set()
    for layer in model.layout.diff(student.layout):
        prefix = f"model.layers.{layer}."
        old = f"{prefix}self_attn."
        kind = student.layout.mixers[layer]
        left = [name for name in before if name.startswith((old, f"{prefix}mixer."))]
        dropped |= {f"student:{name}": f"layer {layer} becomes {kind}" for name in left}
        if not any(name.startswith(old) for name in teacher):
            raise ModelError(
                f"layer {layer} of the source holds {source.layout.mixers[layer]}, not attention. "
                "Pass the original teacher as source."
            )
        read |= {name for name in teacher if name.startswith(old)}
        target = student.model.layers[layer]
        if kind == "attention":
            made |= {name: Copy(name, "teacher") for name in wanted if name.startswith(old)}
            continue
        fresh, unused = map_mixer(target.mixer, old, f"{prefix}mixer.", teacher, init)
        made |= fresh
        dropped |= unused
    entries = tuple((name, made.get(name, Copy(name))) for name in wanted)
    weights = WeightMap(entries, dropped)
    needed = {name: shape for name, shape in teacher.items() if name in read}
    shapes = {"student": before, "teacher": needed, "init": wanted, "aligned": wanted}
    weights.check(wanted, shapes)
    return weights, student


def _check_source(model: HybridForCausalLM, source: HybridForCausalLM) -> None:
    """Check that the attention of the source is of the sizes of the model's."""
    for key in _SOURCE_SIZES:
        wanted, found = (getattr(one.config, key) for one in (model, source))
        if wanted != found:
            raise ModelError(
                f"the source has {key} {found}, and the model {wanted}. "
                "Name the teacher that the model was made of as source (--teacher)."
            )


_SOURCE_SIZES = (
    *("num_hidden_layers", "hidden_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""What a source has to have in common with the model, by names of the configuration."""


def _get_shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _draw_mixers(student: HybridForCausalLM, seed: int) -> dict[str, Tensor]:
    drawn: dict[str, Tensor] = {}
    for name, module in student.named_modules():
        if isinstance(module, Mixer):
            drawn |= draw_mixer(module, name, seed)
    return drawn


def draw_mixer(mixer: Mixer, name: str, seed: int) -> dict[str, Tensor]:
    """Draw a mixer in place, on the CPU in float32, from a generator of its own.

    Args:
        mixer: its values are lost; it may be on the meta device.
        name: its name in the student, on which, and on the seed, alone the values depend.
        seed: of the conversion.

    Returns:
        the tensors by their names in the student.
    """
    mixer.to_empty(device="cpu")
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    mixer.reset(torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    return {f"{name}.{key}": tensor for key, tensor in mixer.state_dict().items()}


def list_float32(student: HybridForCausalLM) -> set[str]:
    """Name the tensors that stay float32 whatever the dtype of the model."""
    return {
        f"{name}.{small}"
        for name, module in student.named_modules()
        if isinstance(module, Mixer)
        for small in module.FLOAT32
    }
