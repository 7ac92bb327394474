"""ModelShape: the geometry of a model read from its config.json; counts parameters, bytes, FLOPs.

Mixer options are given as `{kind: {option: value}}`, with the option names of the recipe. A mixer
that is not listed in `MIXER_COUNTS` (a plugin) is counted like the attention it replaces.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

from hybridize.core.apriel_h1 import is_apriel_h1, translate
from hybridize.core.errors import ModelError
from hybridize.core.families import FAMILIES
from hybridize.core.layout import Layout
from hybridize.core.limits import check_sizes
from hybridize.core.model_files import INDEX, WEIGHTS, list_tensors, read_config

Options = Mapping[str, Mapping[str, Any]]
SHIPPED_TEACHER = Path(__file__).parent.parent / "assets" / "teacher"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only transformer with a gated MLP."""

    family: str
    """The `model_type` of its config.json."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    tied: bool
    """Whether the output head is the embedding."""
    rope_theta: float
    max_positions: int
    window: int | None
    """Tokens a sliding attention layer sees; None = all."""
    window_layers: tuple[int, ...]
    """The layers whose attention slides."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm_size: int
    """Parameters of the norms of queries and keys; 0 where there are none."""
    mixers: tuple[str, ...] = ()
    """Mixer of each layer of a model that is a hybrid already; empty is attention everywhere."""
    mixer_options: Options = field(default_factory=dict)
    """Mixer kind -> options of the layers that hold it already."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str = "config.json") -> "ModelShape":
        """Read the config of a teacher, of a student of ours, or of a published Apriel-H1.

        Raises:
            ModelError: the family is not known, or a key is missing.
        """
        if is_apriel_h1(config):
            translation = translate(config, None, name)
            return cls._from_hybrid(vars(translation), name)
        if isinstance(config.get("teacher"), Mapping):
            return cls._from_hybrid(config, name)
        return cls._from_teacher(config, name)

    @classmethod
    def _from_hybrid(cls, config: Mapping[str, Any], name: str) -> "ModelShape":
        mixers, options = config.get("mixers") or (), config.get("mixer_options") or {}
        shape = cls._from_teacher(config["teacher"], name)
        return replace(shape, mixers=tuple(mixers), mixer_options=options)

    @classmethod
    def _from_teacher(cls, config: Mapping[str, Any], name: str) -> "ModelShape":
        check_sizes(config, name)
        family = config.get("model_type")
        if family not in FAMILIES:
            raise ModelError(
                f"model {name}: {family!r} is not a known family (known: {', '.join(FAMILIES)}). "
                "Use a teacher of a known family, or add a table for it (docs/families.md)."
            )
        sizes = FAMILIES[family]
        config = {**sizes.defaults, **config}
        rope = config.get("rope_parameters") or {}
        try:
            num_heads, hidden_size = config["num_attention_heads"], config["hidden_size"]
            num_kv_heads = config.get("num_key_value_heads") or num_heads
            head_dim = config.get("head_dim") or hidden_size // num_heads
            normed_heads = {None: 0, "head": 2, "all heads": num_heads + num_kv_heads}
            return cls(
                family=family,
                num_layers=config["num_hidden_layers"],
                hidden_size=hidden_size,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                ffn_size=config["intermediate_size"],
                vocab_size=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
                max_positions=config["max_position_embeddings"],
                window=_window(config),
                window_layers=_window_layers(config),
                qkv_bias=_has_bias(config, sizes.qkv_bias),
                o_bias=_has_bias(config, sizes.o_bias),
                mlp_bias=_has_bias(config, sizes.mlp_bias),
                qk_norm_size=head_dim * normed_heads[sizes.qk_norm],
            )
        except KeyError as error:
            raise ModelError(
                f"model {name}: config.json has no {error}. Is this a {family} model folder?"
            ) from error

    @classmethod
    def read(cls, folder: Path | str) -> "ModelShape":
        """Read `config.json` of a model folder; "shipped" is the teacher inside the package.

        Raises:
            ModelError: no such folder or no config in it, or not a model of a known family.
        """
        path = (SHIPPED_TEACHER if str(folder) == "shipped" else Path(folder)) / "config.json"
        if not path.exists():
            raise ModelError(f"model {folder}: there is no {path}. Check teacher.model.")
        config = read_config(path.parent)
        if is_apriel_h1(config) and any((path.parent / file).exists() for file in (WEIGHTS, INDEX)):
            tensors = list_tensors(path.parent)
            shapes = {name: place.shape for name, place in tensors.items()}
            return cls._from_hybrid(vars(translate(config, shapes, str(folder))), str(folder))
        return cls.from_config(config, name=str(folder))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelShape":
        """Read back what `hybridize.core.artifacts.plain` made of a shape."""
        values = {entry.name: value[entry.name] for entry in fields(cls) if entry.name in value}
        lists = {name: tuple(values.get(name, ())) for name in ("window_layers", "mixers")}
        return cls(**values | lists)

    def layout(self) -> Layout:
        """Return the layout of the model: attention everywhere, if it is no hybrid yet."""
        return Layout(self.mixers) if self.mixers else Layout.uniform(self.num_layers)

    def student_layout(self, converted: int, kind: str) -> Layout:
        """Return the layout with so many converted layers in all, those before them first.

        Counts do not depend on which layers are converted.
        """
        layout = self.layout()
        free = [layer for layer, mixer in enumerate(layout.mixers) if mixer == "attention"]
        return layout.convert(free[: max(0, converted - len(layout.converted))], to=kind)

    def parameters(self, layout: Layout | None = None, options: Options | None = None) -> int:
        """Count parameters exactly; a tied head is counted once."""
        layout = layout or self.layout()
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        mixers = sum(self.mixer_parameters(kind, options) for kind in layout.mixers)
        return embeddings + self.hidden_size + self.num_layers * self._shell() + mixers

    def mixer_parameters(self, kind: str, options: Options | None = None) -> int:
        """Count the parameters of one mixer."""
        return self._counts(kind, options).parameters

    def cache_bytes(
        self,
        layout: Layout,
        tokens: int,
        *,
        bytes_per_value: int = 2,
        options: Options | None = None,
    ) -> int:
        """Count the bytes one sequence of `tokens` keeps for decoding: keys, values and states.

        States are float32 and counters int64; everything else takes `bytes_per_value`. With a
        window, the keys of the tokens that the next one still sees are kept.
        """
        total = 0
        for layer, kind in enumerate(layout.mixers):
            counts = self._counts(kind, options)
            visible = self._visible(counts, kind, layer)
            kept = tokens if visible is None else min(tokens, visible - 1)
            total += (counts.cached_per_token * kept + counts.conv_state) * bytes_per_value
            total += counts.float32_state * 4 + counts.counters * 8
        return total

    def flops_per_token(
        self, layout: Layout | None = None, context: int = 0, options: Options | None = None
    ) -> float:
        """Count FLOPs of one token's forward pass with `context` tokens visible to attention.

        Two FLOPs a weight used in a matrix product; attention adds 4 x context x query width,
        an SSM 6 or 8 a state value. Pass half the sequence length for the mean over a sequence.
        """
        layout = layout or self.layout()
        dense = self.hidden_size * (self.vocab_size + 3 * self.ffn_size * self.num_layers)
        mixing = 0
        for layer, kind in enumerate(layout.mixers):
            counts = self._counts(kind, options)
            visible = self._visible(counts, kind, layer)
            seen = context if visible is None else min(context, visible)
            scores = 4 * seen * self.query_size if counts.cached_per_token else 0
            mixing += 2 * counts.parameters + scores + counts.flops_per_state * counts.float32_state
        return float(2 * dense + mixing)

    def saved_values(self, layout: Layout | None = None, options: Options | None = None) -> int:
        """Count the values a token leaves behind in training for the backward pass, head aside.

        The factors were counted on small models with torch's hooks for saved tensors, and hold
        within a fifth there; attention scores are never kept.
        """
        mixers = (layout or self.layout()).mixers
        shell = 4 * self.hidden_size + 4 * self.ffn_size
        mixing = sum(self._counts(kind, options).saved_per_token for kind in mixers)
        return self.num_layers * shell + mixing

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    def _shell(self) -> int:
        """Count what a layer holds beside its mixer: two norms and the MLP."""
        mlp_bias = 2 * self.ffn_size + self.hidden_size if self.mlp_bias else 0
        return 2 * self.hidden_size + 3 * self.hidden_size * self.ffn_size + mlp_bias

    def _counts(self, kind: str, options: Options | None) -> "MixerCounts":
        count = MIXER_COUNTS.get(kind, _attention)
        return count(self, (options or {}).get(kind) or self.mixer_options.get(kind, {}))

    def _visible(self, counts: "MixerCounts", kind: str, layer: int) -> int | None:
        """Return how many tokens the mixer of a layer sees at most; None is all."""
        slides = kind == "attention" and layer in self.window_layers
        return self.window if slides else counts.visible


@dataclass(frozen=True, kw_only=True)
class MixerCounts:
    """Sizes of one mixer, in values."""

    parameters: int
    saved_per_token: int = 0
    cached_per_token: int = 0
    conv_state: int = 0
    float32_state: int = 0
    flops_per_state: int = 6
    """Of one token, for each value of the state."""
    counters: int = 0
    visible: int | None = None
    """Tokens a token sees at most, itself included, where keys are cached; None is all."""


def _attention(shape: ModelShape, options: Mapping[str, Any]) -> MixerCounts:
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    biases = (query + 2 * kv if shape.qkv_bias else 0) + (hidden if shape.o_bias else 0)
    weights = hidden * (2 * query + 2 * kv)
    return MixerCounts(
        parameters=weights + biases + shape.qk_norm_size,
        saved_per_token=hidden + 3 * query + 4 * kv,
        cached_per_token=2 * kv,
    )


def _sliding(shape: ModelShape, options: Mapping[str, Any]) -> MixerCounts:
    """Count the attention it is; a window and its sinks are all that is kept, and a counter."""
    visible = int(options.get("window", 128)) + int(options.get("sinks", 4))
    return replace(_attention(shape, options), visible=visible, counters=1)


def _mamba2(shape: ModelShape, options: Mapping[str, Any]) -> MixerCounts:
    """Count the gated, grouped Mamba-2: in_proj makes z, x, B, C, dt; the conv spans x, B, C."""
    inner = shape.query_size * int(options.get("expand", 1))
    heads = shape.num_heads * int(options.get("expand", 1))
    state = int(options.get("state_size") or shape.head_dim)
    width = int(options.get("conv_width", 4))
    groups = shape.num_heads * state
    conv = inner + 2 * groups
    in_proj = shape.hidden_size * (inner + conv + heads)
    per_head = 3 * heads  # dt bias, A, D
    parameters = in_proj + conv * (width + 1) + per_head + inner + inner * shape.hidden_size
    return MixerCounts(
        parameters=parameters,
        saved_per_token=10 * (inner + conv + heads),
        conv_state=conv * (width - 1),
        float32_state=inner * state,
    )


def _mamba1(shape: ModelShape, options: Mapping[str, Any]) -> MixerCounts:
    """Count the grouped Mamba-1 of Apriel-H1: in_proj makes z, x, B, C; the conv spans x."""
    hidden = shape.hidden_size
    inner = int(options.get("inner_size") or shape.query_size)
    grouped = int(options.get("shared_size") or shape.kv_size)
    state = int(options.get("state_size") or 16)
    width = int(options.get("conv_width", 4))
    rank = int(options.get("step_rank") or ceil(hidden / 16))
    rows = 2 * inner + 2 * grouped
    step = hidden * rank + rank * inner
    biases = inner * (options.get("conv_bias", True) + (options.get("dt_bias") != "never"))
    biases += (rows + rank + hidden) * options.get("linear_bias", False)
    parameters = hidden * rows + step + inner * (width + state + 1) + inner * hidden + biases
    return MixerCounts(
        parameters=parameters,
        saved_per_token=15 * rows,
        conv_state=inner * (width - 1),
        float32_state=inner * state,
    )


def _gated_delta(shape: ModelShape, options: Mapping[str, Any]) -> MixerCounts:
    """Count the Gated DeltaNet of Qwen3.5: qkv, z and two numbers a head; one norm for all heads.

    A state value takes 8 FLOPs: decay, look-up, write and read.
    """
    key, inner = shape.query_size, shape.query_size * int(options.get("expand", 1))
    heads = shape.num_heads * int(options.get("expand", 1))
    width, bias = int(options.get("conv_width", 4)), int(bool(options.get("conv_bias", False)))
    conv = 2 * key + inner
    in_proj = shape.hidden_size * (conv + inner + 2 * heads)
    per_head = 2 * heads  # dt bias, A
    out_proj = inner * shape.hidden_size
    return MixerCounts(
        parameters=in_proj + conv * (width + bias) + per_head + shape.head_dim + out_proj,
        saved_per_token=10 * (conv + inner),
        conv_state=conv * (width - 1),
        float32_state=inner * shape.head_dim,
        flops_per_state=8,
    )


def _identity(shape: ModelShape, options: Mapping[str, Any]) -> MixerCounts:
    return MixerCounts(parameters=0)


MIXER_COUNTS = {
    "attention": _attention,
    "sliding": _sliding,
    "mamba2": _mamba2,
    "mamba1": _mamba1,
    "gated_delta": _gated_delta,
    "identity": _identity,
}


def _window(config: Mapping[str, Any]) -> int | None:
    if config.get("use_sliding_window") is False:
        return None
    window = config.get("sliding_window")
    return int(window) if window else None


def _window_layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    if _window(config) is None:
        return ()
    slides = FAMILIES[config["model_type"]].slides
    return tuple(n for n in range(config["num_hidden_layers"]) if slides(config, n))


def _has_bias(config: Mapping[str, Any], bias: bool | str) -> bool:
    return bool(config.get(bias, False)) if isinstance(bias, str) else bias
