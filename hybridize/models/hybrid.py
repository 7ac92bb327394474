"""The student: a teacher's own layers with the mixer of some of them replaced.

Legend: B batch, T tokens, D model width, V vocabulary.

Everything a layer keeps (norms, MLP, attention) is the teacher's own module under the teacher's own
name, so a student in which no layer is converted has the teacher's tensors and computes the
teacher's numbers, bit for bit. A converted layer holds `mixer` in the place of `self_attn`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from hybridize.core.errors import ModelError
from hybridize.core.layout import Layout
from hybridize.models import documents as packed
from hybridize.models.cache import HybridCache
from hybridize.models.documents import Documents
from hybridize.models.families import Family, find_family
from hybridize.models.fused import attend_packed, fused_mlp, fused_norm
from hybridize.models.head import OutputHead
from hybridize.models.mixers import Mixer, MixerContext, MixerShape, build_mixer
from hybridize.ops.packed_attention.documents import group_documents


class HybridConfig(PreTrainedConfig):
    """Configuration of a student: its teacher's configuration and the mixer of each layer."""

    model_type = "hybridize"
    sub_configs: ClassVar = {"teacher": AutoConfig}

    teacher: Any = None
    """The teacher's configuration, or a dictionary of it with `model_type`."""
    mixers: Any = None
    """List of the mixer kind of each layer; None is attention everywhere."""
    mixer_options: Any = None
    """Mixer kind -> option -> value."""
    last_training_window: int | None = None
    """Tokens per row in the last training, beyond which converted layers were never trained."""
    published: Any = None
    """Of a model read from another project's layout, what writes it back as it was; see
    `hybridize.models.apriel_h1`."""

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.teacher, dict):
            family = find_family(str(self.teacher.get("model_type")))
            self.teacher = family.config(**self.teacher)
        super().__post_init__(**kwargs)
        if self.teacher is None:
            return
        self.mixers = self.mixers or ["attention"] * self.teacher.num_hidden_layers
        self.mixer_options = self.mixer_options or {}
        for name in _COPIED:
            setattr(self, name, getattr(self.teacher, name, None))
        width = getattr(self.teacher, "head_dim", None)
        self.head_dim = width or self.teacher.hidden_size // self.teacher.num_attention_heads


_COPIED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""What transformers' tools look for in the student's own configuration."""


class HybridLayer(nn.Module):
    """One residual layer: a mixer and an MLP, with the norms and the scale of the family."""

    def __init__(self, family: Family, config: HybridConfig, layer: int) -> None:
        super().__init__()
        teacher, kind = config.teacher, config.mixers[layer]
        shape = MixerShape(
            hidden_size=teacher.hidden_size,
            num_heads=teacher.num_attention_heads,
            num_kv_heads=teacher.num_key_value_heads,
            head_dim=config.head_dim,
            norm_eps=teacher.rms_norm_eps,
            make_attention=partial(family.attention, teacher, layer),
        )
        self.window = family.get_window(teacher, layer)
        self.norms, self.scale = family.norms, family.get_multipliers(teacher).residual
        if kind == "attention":
            self.self_attn = family.attention(teacher, layer)
        else:
            self.mixer = build_mixer(kind, shape, layer, config.mixer_options.get(kind, {}))
        self.mlp = family.mlp(teacher)
        for name in filter(None, vars(family.norms).values()):
            self.add_module(name, family.norm(shape.hidden_size, eps=shape.norm_eps))
        self.left_out: str | None = None  # "layer" or "attention"; see `without`

    def forward(self, hidden_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Return the residual stream after this layer, (B, T, D)."""
        if self.left_out == "layer":
            return hidden_BTD
        fused = ctx.fused and not torch.compiler.is_compiling()
        if self.left_out != "attention":
            mixed_BTD = self.mix(self.normalize(hidden_BTD, self.norms.before_mixer, fused), ctx)
            hidden_BTD = self._add(hidden_BTD, mixed_BTD, self.norms.after_mixer, fused)
        normed_BTD = self.normalize(hidden_BTD, self.norms.before_mlp, fused)
        made_BTD = fused_mlp(self.mlp, normed_BTD) if fused else self.mlp(normed_BTD)
        return self._add(hidden_BTD, made_BTD, self.norms.after_mlp, fused)

    def normalize(self, hidden_BTD: Tensor, norm: str | None, fused: bool = False) -> Tensor:
        """Apply the norm of this name; None is no norm."""
        if norm is None:
            return hidden_BTD
        module = getattr(self, norm)
        return fused_norm(module, hidden_BTD) if fused else module(hidden_BTD)

    def _add(self, hidden_BTD: Tensor, made_BTD: Tensor, norm: str | None, fused: bool) -> Tensor:
        made_BTD = self.normalize(made_BTD, norm, fused)
        return hidden_BTD + (made_BTD if self.scale == 1 else made_BTD * self.scale)

    def mix(self, normed_BTD: Tensor, ctx: MixerContext) -> Tensor:
        """Return what the mixer makes of the normed residual stream."""
        if hasattr(self, "mixer"):
            return self.mixer(normed_BTD, ctx)
        if ctx.documents is not None and self.window is None:
            return attend_packed(self.self_attn, normed_BTD, ctx)
        return self.self_attn(
            hidden_states=normed_BTD,
            position_embeddings=ctx.rope,
            attention_mask=ctx.masks[self.window],
            position_ids=ctx.positions_BT,
            past_key_values=ctx.cache,
        )[0]


class HybridModel(nn.Module):
    """Embedding, layers and final norm, under the names every family uses."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        teacher, family = config.teacher, find_family(config.teacher.model_type)
        width = teacher.hidden_size
        self.embed_tokens = nn.Embedding(teacher.vocab_size, width, teacher.pad_token_id)
        self.layers = nn.ModuleList(
            HybridLayer(family, config, layer) for layer in range(len(config.mixers))
        )
        self.norm = family.norm(width, eps=teacher.rms_norm_eps)
        self.rotary_emb = family.rotary(config=teacher)
        self.multipliers = family.get_multipliers(teacher)
        self.rope_switch = family.get_rope_switch(teacher)

    def scale_embedding(self, embedded_BTD: Tensor) -> Tensor:
        """Return the residual stream before the first layer."""
        factor = self.multipliers.embedding
        return embedded_BTD if factor == 1 else embedded_BTD * factor


class HybridForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model in which each layer has the mixer that the layout says."""

    config_class = HybridConfig
    base_model_prefix = "model"
    _no_split_modules = ["HybridLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["A_log", "mixer.D", "dt_bias", "dt_proj.bias"]  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        config.teacher._attn_implementation = config._attn_implementation
        self.model = HybridModel(config)
        divisor = self.model.multipliers.logits_divisor
        self.lm_head = OutputHead(config.hidden_size, config.vocab_size, divisor)
        self.post_init()

    @property
    def layout(self) -> Layout:
        """Which mixer sits in which layer."""
        return Layout(tuple(self.config.mixers))

    def make_cache(self) -> HybridCache:
        """Make an empty cache for this layout."""
        return HybridCache(self.config.mixers, [layer.window for layer in self.model.layers])

    def forward(  # noqa: PLR0913  the arguments are those of transformers' models
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of the next token after each token.

        Args:
            input_ids: tokens (B, T).
            attention_mask: (B, tokens seen so far with these), 0 for padding.
            segments: document of each token (B, T), 0 for padding, for several documents in one
                row; positions restart in each. Not with an attention mask or a cache.
            position_ids: (B, T); by default counted on from the tokens in the cache.
            past_key_values: a cache of `make_cache`, read and extended.
            inputs_embeds: in the place of input_ids, (B, T, D); at padding they may be anything.
            use_cache: make a cache if none is given.
            logits_to_keep: only the last so many, or those at these indices; 0 keeps all.
            output_hidden_states: also return the input of each layer and the final normed states.
            kwargs: ignored; tools pass options of other models.

        Raises:
            ModelError: arguments that exclude each other, or a foreign cache.
        """
        if use_cache and past_key_values is None:
            past_key_values = self.make_cache()
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        inputs_embeds = self.model.scale_embedding(inputs_embeds)
        ctx = self.make_context(
            inputs_embeds, attention_mask, segments, position_ids, past_key_values
        )
        if input_ids is None and ctx.segments_BT is not None:
            inputs_embeds = inputs_embeds.masked_fill((ctx.segments_BT == 0)[..., None], 0)
        states: list[Tensor] | None = [] if output_hidden_states else None
        hidden_BTD = self._run(inputs_embeds, ctx, states)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden_BTD[:, keep]),
            past_key_values=past_key_values,
            hidden_states=None if states is None else tuple(states),
        )

    def hidden(
        self, input_ids: Tensor, segments: Tensor | None = None, states: list[Tensor] | None = None
    ) -> Tensor:
        """Return the final normed states (B, T, D), which `lm_head` turns into logits.

        Args:
            input_ids: tokens (B, T).
            segments: see `forward`.
            states: a list that gets the input of each layer and the final states.
        """
        embedded_BTD = self.model.scale_embedding(self.model.embed_tokens(input_ids))
        ctx = self.make_context(embedded_BTD, segments_BT=segments)
        return self._run(embedded_BTD, ctx, states)

    def _run(self, hidden_BTD: Tensor, ctx: MixerContext, states: list[Tensor] | None) -> Tensor:
        for layer in self.model.layers:
            if states is not None:
                states.append(hidden_BTD)
            hidden_BTD = layer(hidden_BTD, ctx)
        hidden_BTD = self.model.norm(hidden_BTD)
        if states is not None:
            states.append(hidden_BTD)
        if ctx.cache is not None:
            ctx.cache.advance(hidden_BTD.shape[1])
        return hidden_BTD

    def make_context(
        self,
        hidden_BTD: Tensor,
        attention_mask: Tensor | None = None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: HybridCache | None = None,
    ) -> MixerContext:
        """Settle once, for all layers, who sees whom and at which position; see `forward`."""
        if segments_BT is not None and (attention_mask is not None or cache is not None):
            raise ModelError("segments exclude an attention mask and a cache: pass one of them.")
        if cache is not None and not isinstance(cache, HybridCache):
            raise ModelError(
                f"a {type(cache).__name__} cannot hold the states of this model: use make_cache()."
            )
        num_tokens = hidden_BTD.shape[1]
        if positions_BT is None and segments_BT is not None:
            positions_BT = packed.restart_positions(segments_BT)
        elif positions_BT is None:
            seen = 0 if cache is None else cache.num_tokens
            positions_BT = torch.arange(seen, seen + num_tokens, device=hidden_BTD.device)[None]
        fused = segments_BT is not None and hidden_BTD.device.type == "cpu"
        if attention_mask is not None:
            segments_BT = attention_mask[:, -num_tokens:].long()
        if segments_BT is not None and bool((segments_BT == segments_BT[:, :1]).all()):
            segments_BT = None if bool((segments_BT != 0).all()) else segments_BT

        # Where positions restart, transformers' masks separate the documents; a mask of None is
        # plainly causal and lets sdpa take its fastest path.
        windows = {layer.window for layer in self.model.layers if hasattr(layer, "self_attn")}
        documents = None
        if segments_BT is not None and attention_mask is None:
            documents = self._find_documents(hidden_BTD, segments_BT)
            windows -= {None}
        masks: dict[int | None, Any] = {
            window: (create_causal_mask if window is None else create_sliding_window_causal_mask)(
                config=self.config.teacher,
                inputs_embeds=hidden_BTD,
                attention_mask=attention_mask,
                past_key_values=cache,
                position_ids=positions_BT,
            )
            for window in windows
        }
        return MixerContext(
            positions_BT=positions_BT,
            rope=self.model.rotary_emb(hidden_BTD, position_ids=positions_BT),
            masks=masks,
            segments_BT=segments_BT,
            documents=documents,
            cache=cache,
            fused=fused,
        )

    def _find_documents(self, hidden_BTD: Tensor, segments_BT: Tensor) -> Documents:
        groups = group_documents(segments_BT)
        positions_1L = torch.arange(groups.longest, device=hidden_BTD.device)[None]
        return Documents(groups, self.model.rotary_emb(hidden_BTD, position_ids=positions_1L))

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[Any, Any], *args: Any
    ) -> Any:
        wants_cache = generation_config.use_cache is not False
        if wants_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.make_cache()
        if isinstance(model_kwargs.get("past_key_values"), HybridCache):
            model_kwargs["past_key_values"].follow(generation_config)
        prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
        return prepare(generation_config, model_kwargs, *args)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: HybridCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Fill the cache afresh where the family's positions switch; see `Family`.

        Rows that have ended are masked: until the last row ends, `generate` feeds them padding, and
        a state that took it in could not be continued by a second turn.
        """
        switch, seen = self.model.rope_switch, getattr(past_key_values, "num_tokens", 0)
        if switch is not None and 0 < seen <= switch < input_ids.shape[1]:
            past_key_values = None
            kwargs["next_sequence_length"] = None
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        inputs = prepare(input_ids, past_key_values=past_key_values, **kwargs)
        mask_BS = inputs.get("attention_mask")
        is_first = kwargs.get("is_first_iteration")
        if past_key_values is not None and mask_BS is not None and not is_first:
            inputs["attention_mask"] = past_key_values.mask_ended(input_ids, mask_BS)
        return inputs

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Mixer):
            if not any(hasattr(p, "_is_hf_initialized") for p in module.parameters()):
                module.reset()
            return
        super()._init_weights(module)


@contextmanager
def without(model: HybridForCausalLM, layer: int, scope: str = "layer") -> Iterator[None]:
    """Leave a layer, or only its mixer, out of the model for the time of a `with` block.

    Args:
        model: changed in place, and restored at the end.
        layer: from 0.
        scope: "layer" passes the residual stream by the whole layer, "attention" by its mixer.

    Raises:
        ModelError: there is no such layer or scope.
    """
    if scope not in ("layer", "attention"):
        raise ModelError(f"scope {scope!r} does not exist; use layer or attention.")
    if not 0 <= layer < len(model.model.layers):
        last = len(model.model.layers) - 1
        raise ModelError(f"layer {layer} does not exist: the model has layers 0 to {last}.")
    target = model.model.layers[layer]
    before, target.left_out = target.left_out, scope
    try:
        yield
    finally:
        target.left_out = before
