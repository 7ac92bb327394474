"""Published Apriel-H1 checkpoints: what their config.json and tensors mean in our own words.

They hold Mistral layers and a Mamba mixer called "m2" (arXiv 2511.02651). They were trained with
values and keys repeated in groups of the state size, and with the bias of the step size applied
twice. Their class name and model_type changed between releases, so they are told by what they
hold; and where the tensors are at hand, sizes are read from them: the published step rank, for one,
was stated wrongly. An older form keeps the projection to the step size as the last rows of in_proj.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from hybridize.core.auto_names import APRIEL_H1, APRIEL_H1_KEYS
from hybridize.core.errors import ModelError
from hybridize.core.model_files import tell

CODES = {"t": "attention", "m2": "mamba1", "i": "identity"}
"""Word of hybrid_block_layout -> mixer; "i" leaves the whole layer out, MLP and norms too."""
OWN_KEYS = ("hybrid_block_layout", "ssm_cfg", "model_type", "architectures", "auto_map")
"""Keys of config.json that are not Mistral's."""

Values = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
_IN_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)", re.ASCII)


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor of a file."""

    name: str
    """Its name in the file."""
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A published checkpoint in the words of a student."""

    teacher: dict[str, Any]
    """Values of the Mistral configuration."""
    mixers: list[str]
    """Mixer kind of each layer."""
    mixer_options: dict[str, dict[str, Any]]
    """Mixer kind -> option -> value."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """Our tensors that are but a part of one of the file."""
    left_out: tuple[int, ...] = ()
    """Layers of which no tensor is kept: the residual stream passes by."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Sizes of the Mamba mixer."""

    state: int
    conv: int
    inner: int
    shared: int
    """Width of x, and of B."""
    rank: int
    conv_bias: bool = True
    linear_bias: bool = False
    step_bias: bool = True
    separate_step: bool = True
    """Whether the projection to the step size is a tensor of its own."""


def is_apriel_h1(values: Values, names: Iterable[str] = ()) -> bool:
    """Tell whether a config.json, and the names of tensors where at hand, are of Apriel-H1."""
    if values.get("model_type") == "hybridize":
        return False
    if values.get("model_type") in APRIEL_H1 or APRIEL_H1_KEYS & set(values):
        return True
    return any(_IN_LAYER.fullmatch(name) and name.endswith(".mixer.A_log") for name in names)


def translate(values: Values, shapes: Shapes | None, place: str) -> Translation:
    """Say in the words of a student what a published checkpoint holds.

    Args:
        values: of config.json; what it leaves out is taken from the tensors.
        shapes: name of each tensor in the files -> its shape; None where only config.json is
            at hand, so that what it leaves out has the defaults of the published code.
        place: where this was read, for errors.

    Raises:
        ModelError: the layout names a mixer that the published models do not have, or config.json
            and the tensors disagree.
    """
    layers = _group(shapes or {})
    codes = _read_codes(values, layers if shapes else None, place)
    own = values.get("ssm_cfg")
    if own is not None and not isinstance(own, Mapping):
        raise ModelError(f"model {place}: ssm_cfg in config.json is no mapping of settings.")
    teacher = _read_teacher(values, shapes or {}, layers, codes, place)
    options: dict[str, Any] = {}
    rows: dict[str, Rows] = {}
    if "m2" in codes:
        first = codes.index("m2")
        given = _sizes_of_config(own or {}, teacher, place)
        sizes = _sizes_of_tensors(layers[first], f"{place}, layer {first}") if shapes else given
        _compare(own or {}, given, sizes, place)
        options = _options(sizes, teacher)
        rows = {} if sizes.separate_step else _split_steps(codes, layers)
    return Translation(
        teacher=teacher,
        mixers=[CODES[code] for code in codes],
        mixer_options={"mamba1": options} if options else {},
        rows=rows,
        left_out=tuple(layer for layer, code in enumerate(codes) if code == "i"),
    )


def _group(shapes: Shapes) -> dict[int, dict[str, tuple[int, ...]]]:
    """Return layer -> name within the layer -> shape."""
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        found = _IN_LAYER.fullmatch(name)
        if found:
            layers.setdefault(int(found[1]), {})[found[2]] = shape
    return layers


def _read_codes(values: Values, layers: Mapping[int, Shapes] | None, place: str) -> list[str]:
    """Return the layout, held against the tensors."""
    found = None
    if layers is not None:
        found = [_code_of(layers.get(layer, {})) for layer in _range(values, layers)]
    given = values.get("hybrid_block_layout", found)
    if given is None:
        raise ModelError(f"model {place}: config.json has no hybrid_block_layout. Copy it again.")
    if not isinstance(given, list) or not given:
        raise ModelError(
            f"model {place}: hybrid_block_layout is {tell(given)}, not a list of layers."
        )
    foreign = sorted({_tell_code(code) for code in given if code not in list(CODES)})
    if foreign:
        raise ModelError(
            f"model {place}: the layout names {', '.join(foreign[:5])}, but only "
            f"{', '.join(CODES)} of Apriel-H1 can be loaded."
        )
    told = values.get("num_hidden_layers", len(given))
    if told != len(given):
        raise ModelError(
            f"model {place}: config.json says num_hidden_layers {tell(told)}, but "
            f"hybrid_block_layout has {len(given)} layers. "
            "Copy the config.json that belongs to the weights."
        )
    for layer, (code, held) in enumerate(zip(given, found or given, strict=False)):
        # Tensors of a layer that is left out are allowed, and not read.
        if code not in (held, "i"):
            raise ModelError(
                f"model {place}: layer {layer} is {code!r} in hybrid_block_layout, but its "
                f"tensors are {_TENSORS[held]}. Copy the config.json that belongs to the weights."
            )
    return list(given)


def _tell_code(code: Any) -> str:
    return code if isinstance(code, str) and code.isalnum() and len(code) < 10 else tell(code)


_TENSORS = {"t": "those of attention", "m2": "those of a Mamba mixer", "i": "missing"}


def _range(values: Values, layers: Mapping[int, Shapes]) -> range:
    layout = values.get("hybrid_block_layout")
    if isinstance(layout, list):
        return range(len(layout))
    return range(max(layers, default=-1) + 1)


def _code_of(layer: Shapes) -> str:
    if "mixer.A_log" in layer:
        return "m2"
    return "t" if any(name.startswith("self_attn.") for name in layer) else "i"


def _read_teacher(
    values: Values,
    shapes: Shapes,
    layers: Mapping[int, Shapes],
    codes: list[str],
    place: str,
) -> dict[str, Any]:
    """Return the values of the Mistral configuration, completed from the tensors."""
    teacher = {
        name: value
        for name, value in values.items()
        if name not in OWN_KEYS and not name.startswith("_")
    }
    teacher |= {"model_type": "mistral", "num_hidden_layers": len(codes)}
    if not shapes:
        return teacher
    vocab_size, hidden_size = (*shapes.get("model.embed_tokens.weight", ()), 0, 0)[:2]
    held: dict[str, Any] = {"tie_word_embeddings": "lm_head.weight" not in shapes}
    held |= {"vocab_size": vocab_size, "hidden_size": hidden_size}
    mlp = next((layer for layer in layers.values() if "mlp.gate_proj.weight" in layer), {})
    held["intermediate_size"] = _rows(mlp, "mlp.gate_proj.weight")
    if "t" in codes:
        attention = layers[codes.index("t")]
        query, key = (_rows(attention, f"self_attn.{name}_proj.weight") for name in "qk")
        heads: Any = teacher.get("num_attention_heads")
        width: Any = teacher.get("head_dim")
        if _is_size(heads):
            width = held["head_dim"] = query // heads
        elif _is_size(width):
            held["num_attention_heads"] = query // width
        held["num_key_value_heads"] = key // width if _is_size(width) and width else None
    for name, size in held.items():
        if size and teacher.get(name) is None:
            teacher[name] = size
    return teacher


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rows(layer: Shapes, name: str) -> int:
    return (*layer.get(name, ()), 0)[0]


def _sizes_of_config(own: Values, teacher: Values, place: str) -> _Sizes:
    """Read ssm_cfg with the defaults of the published code."""

    def get(name: str, default: Any) -> int:
        value = own.get(name)
        value = default if value is None or value == "auto" else value
        if not _is_size(value):
            raise ModelError(
                f"model {place}: ssm_cfg.{name} in config.json is {tell(value)}, no size."
            )
        return int(value)

    hidden = get_hidden(teacher)
    return _Sizes(
        state=get("d_state", 64),
        conv=get("d_conv", 4),
        inner=get("d_inner", get("expand", 1) * hidden),
        shared=get("d_xb", hidden),
        rank=get("dt_rank", ceil(hidden / 16)),
        **{name: _has_bias(own, key) for key, name in _BIASES.items()},
    )


_BIASES = {"conv_bias": "conv_bias", "dt_proj_bias": "step_bias", "bias": "linear_bias"}
"""Key of ssm_cfg -> field of _Sizes."""


def _has_bias(own: Values, key: str) -> bool:
    """Read a flag of ssm_cfg; where it is left out, all biases but `bias` are there."""
    value = own.get(key)
    return key != "bias" if value is None else bool(value)


def get_hidden(teacher: Values) -> int:
    """Return the width of the residual stream; Mistral's default where config.json has none."""
    value = teacher.get("hidden_size", 4096)
    return value if _is_size(value) else 4096


def _sizes_of_tensors(layer: Shapes, place: str) -> _Sizes:
    """Read the sizes of the Mamba mixer of one layer."""

    def get(name: str, num_dims: int) -> tuple[int, ...]:
        shape = layer.get(f"mixer.{name}", ())
        if len(shape) != num_dims or 0 in shape:
            raise ModelError(
                f"model {place}: mixer.{name} has shape {shape}, where {num_dims} sizes are "
                "expected. This is no mixer of Apriel-H1."
            )
        return shape

    inner, state = get("A_log", 2)
    channels, _, conv = get("conv1d.weight", 3)
    rank = get("dt_proj.weight", 2)[1]
    rows = get("in_proj.weight", 2)[0]
    separate = "mixer.dt_in_proj.weight" in layer
    shared, rest = divmod(rows - 2 * inner - (0 if separate else rank), 2)
    if rest or shared < 1 or shared % state or inner % shared:
        raise ModelError(
            f"model {place}: mixer.in_proj.weight has {rows} rows, which are no gates and queries "
            f"of {inner} channels with values and keys in groups of {state}. "
            "Copy the weights again."
        )
    if channels != inner:
        raise ModelError(
            f"model {place}: the convolution has {channels} channels and the scan {inner}. Only "
            "repeat_kv_before_conv: true, as in all published models, can be loaded."
        )
    return _Sizes(
        state=state,
        conv=conv,
        inner=inner,
        shared=shared,
        rank=rank,
        conv_bias="mixer.conv1d.bias" in layer,
        linear_bias="mixer.in_proj.bias" in layer,
        step_bias="mixer.dt_proj.bias" in layer,
        separate_step=separate,
    )


def _compare(own: Values, given: _Sizes, held: _Sizes, place: str) -> None:
    """Hold ssm_cfg against the tensors; the step rank is not compared, as it was stated wrongly."""
    names = {"d_state": "state", "d_conv": "conv", "d_inner": "inner", "d_xb": "shared"}
    for key, name in names.items():
        told, found = getattr(given, name), getattr(held, name)
        if own.get(key) is not None and told != found:
            raise ModelError(
                f"model {place}: config.json says ssm_cfg.{key} {told}, but the tensors have "
                f"{found}. Copy the config.json that belongs to the weights."
            )
    biases = {"conv_bias": "conv1d", "dt_proj_bias": "dt_proj", "bias": "in_proj"}
    for key, owner in biases.items():
        told, found = _has_bias(own, key), getattr(held, _BIASES[key])
        # A bias of which nothing is stated may be there, but a default one may not be missing.
        if told != found and (own.get(key) is not None or (own and told)):
            raise ModelError(
                f"model {place}: by ssm_cfg.{key} the mixers have {'a' if told else 'no'} bias, "
                f"but mixer.{owner}.bias is {'there' if found else 'missing'}. "
                "Copy the config.json that belongs to the weights, or all weights again."
            )


def _options(sizes: _Sizes, teacher: Values) -> dict[str, Any]:
    """Return the options of our mixer, without those that follow from the attention's sizes."""
    options: dict[str, Any] = {
        "state_size": sizes.state,
        "conv_width": sizes.conv,
        "repeat": "state",
        "dt_bias": "twice" if sizes.step_bias else "never",
    }
    hidden, heads = get_hidden(teacher), teacher.get("num_attention_heads") or 32
    width = teacher.get("head_dim") or hidden // heads
    if sizes.inner != heads * width:
        options["inner_size"] = sizes.inner
    if sizes.shared != (teacher.get("num_key_value_heads") or 8) * width:
        options["shared_size"] = sizes.shared
    if sizes.rank != ceil(hidden / 16):
        options["step_rank"] = sizes.rank
    if not sizes.conv_bias:
        options["conv_bias"] = False
    if sizes.linear_bias:
        options["linear_bias"] = True
    return options


def _split_steps(codes: list[str], layers: Mapping[int, Shapes]) -> dict[str, Rows]:
    """Cut in_proj of the older form in two: gates, values, keys, queries, and the step size."""
    rows: dict[str, Rows] = {}
    for layer in (n for n, code in enumerate(codes) if code == "m2"):
        for kind in ("weight", "bias"):
            shape = layers[layer].get(f"mixer.in_proj.{kind}")
            if shape:
                cut = shape[0] - (*layers[layer].get("mixer.dt_proj.weight", ()), 0, 0)[1]
                prefix = f"model.layers.{layer}.mixer."
                name = f"{prefix}in_proj.{kind}"
                rows[name] = Rows(name, 0, cut)
                rows[f"{prefix}dt_in_proj.{kind}"] = Rows(name, cut, shape[0])
    return rows
