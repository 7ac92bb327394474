"""Checkpoints in the published Apriel-H1 layout with random weights, and what they should compute.

`published_logits` follows the published forward pass token by token in float64, one operation a
line, and shares nothing with the package.

Legend: T tokens, D model width, E inner channels, X width of x and B, N state size, W conv taps.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

FIXTURE = Path(__file__).parent.parent / "fixtures" / "apriel-h1"
VOCABULARY = 61


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of the layout, in few words."""

    codes: tuple[str, ...] = ("t", "m2", "t", "m2")
    vocabulary: int = VOCABULARY
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    state: int = 4
    conv: int = 4
    rank: int = 2
    inner: int | None = None
    shared: int | None = None
    tied: bool = False
    joint: bool = False
    biases: tuple[str, ...] = ("conv1d", "dt_proj")
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def inner_size(self) -> int:
        return self.inner or self.heads * self.head_dim

    @property
    def shared_size(self) -> int:
        return self.shared or self.kv_heads * self.head_dim


def make_config(form: Form) -> dict[str, Any]:
    """Return the values of config.json; a value of None in `form.config` leaves a key out."""
    values: dict[str, Any] = {
        "architectures": ["AprielHForCausalLM"],
        "model_type": "apriel_h",
        "auto_map": {
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModelForCausalLM": "modeling_evil.EvilModel",
        },
        "vocab_size": form.vocabulary,
        "hidden_size": form.hidden,
        "intermediate_size": 2 * form.hidden,
        "num_hidden_layers": len(form.codes),
        "num_attention_heads": form.heads,
        "num_key_value_heads": form.kv_heads,
        "head_dim": form.head_dim,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "tie_word_embeddings": form.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "hybrid_block_layout": list(form.codes),
        "ssm_cfg": {
            "d_state": form.state,
            "d_conv": form.conv,
            "d_inner": form.inner_size,
            "d_xb": form.shared_size,
            "expand": 1,
            "dt_rank": "auto",
            "conv_bias": "conv1d" in form.biases,
            "bias": "in_proj" in form.biases,
            "dt_proj_bias": "dt_proj" in form.biases,
        },
    }
    changed = values | form.config
    return {key: value for key, value in changed.items() if key not in form.config or value}


def make_tensors(form: Form, seed: int = 0) -> dict[str, Tensor]:
    """Draw weights that are large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        return scale * torch.randn(shape, generator=generator)

    D, E, X, N, R = form.hidden, form.inner_size, form.shared_size, form.state, form.rank
    query, key = form.heads * form.head_dim, form.kv_heads * form.head_dim
    tensors = {"model.embed_tokens.weight": draw(form.vocabulary, D)}
    tensors["model.norm.weight"] = 1 + draw(D)
    if not form.tied:
        tensors["lm_head.weight"] = draw(form.vocabulary, D)
    rows = 2 * E + 2 * X + (R if form.joint else 0)
    mamba = {"in_proj": (rows, D), "dt_in_proj": (R, D), "dt_proj": (E, R)}
    mamba |= {"conv1d": (E, 1, form.conv), "out_proj": (D, E)}
    if form.joint:
        del mamba["dt_in_proj"]
    attention = {"q_proj": (query, D), "k_proj": (key, D), "v_proj": (key, D), "o_proj": (D, query)}
    mlp = {"gate_proj": (2 * D, D), "up_proj": (2 * D, D), "down_proj": (D, 2 * D)}
    for layer, code in enumerate(form.codes):
        prefix = f"model.layers.{layer}."
        if code == "i":
            continue
        if code == "m2":
            home = f"{prefix}mixer."
            tensors |= {f"{home}A_log": draw(E, N).abs(), f"{home}D": 1 + draw(E)}
            tensors |= {f"{home}{n}.bias": draw(mamba[n][0]) for n in form.biases if n in mamba}
        parts = {"mixer": mamba} if code == "m2" else {"self_attn": attention}
        for part, shapes in (parts | {"mlp": mlp}).items():
            tensors |= {f"{prefix}{part}.{n}.weight": draw(*shape) for n, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = 1 + draw(D)
    return tensors


def write(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1
) -> Path:
    """Write a checkpoint as one file, or as shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_checkpoint(folder: Path, form: Form, *, shards: int = 1, seed: int = 0) -> Path:
    """Write a checkpoint of a form with random weights."""
    return write(folder, make_config(form), make_tensors(form, seed), shards)


def published_logits(form: Form, tensors: dict[str, Tensor], ids_T: Tensor) -> Tensor:
    """Return logits (T, vocabulary) of one row, in float64."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    hidden = weights["model.embed_tokens.weight"][ids_T]
    for layer, code in enumerate(form.codes):
        part = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        if code == "i":
            continue
        normed = _norm(hidden, part["input_layernorm.weight"])
        mix = _attend if code == "t" else _mamba
        hidden = hidden + mix(form, part, normed)
        normed = _norm(hidden, part["post_attention_layernorm.weight"])
        gate = F.silu(normed @ part["mlp.gate_proj.weight"].T)
        up = normed @ part["mlp.up_proj.weight"].T
        hidden = hidden + (gate * up) @ part["mlp.down_proj.weight"].T
    head = weights["model.embed_tokens.weight" if form.tied else "lm_head.weight"]
    return _norm(hidden, weights["model.norm.weight"]) @ head.T


def _norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden * (hidden.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def _attend(form: Form, part: dict[str, Tensor], normed: Tensor) -> Tensor:
    num_tokens, width = len(normed), form.head_dim
    angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] * (
        1e6 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    )
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def turn(heads: Tensor) -> Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat([-second, first], dim=-1) * sin

    def split(name: str) -> Tensor:
        return (normed @ part[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, width))

    query, key, value = (split(name).transpose(0, 1) for name in "qkv")
    share = form.heads // form.kv_heads
    key, value = (x.repeat_interleave(share, dim=0) for x in (turn(key), value))
    scores = turn(query) @ key.transpose(1, 2) / width**0.5
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
    return mixed @ part["self_attn.o_proj.weight"].T


def _mamba(form: Form, part: dict[str, Tensor], normed: Tensor) -> Tensor:
    E, X, N = form.inner_size, form.shared_size, form.state

    def project(name: str, inputs: Tensor) -> Tensor:
        bias = part.get(f"mixer.{name}.bias", torch.zeros(()))
        return inputs @ part[f"mixer.{name}.weight"].T + bias

    projected = project("in_proj", normed)
    z, x, B, C = projected[:, : 2 * E + 2 * X].split([E, X, X, E], dim=-1)
    step = projected[:, 2 * E + 2 * X :] if form.joint else project("dt_in_proj", normed)
    step_bias = part.get("mixer.dt_proj.bias", torch.zeros(()))
    dt = F.softplus(project("dt_proj", step) + step_bias)  # the bias a second time
    repeat = (E // N) // (X // N)
    x = x.unflatten(-1, (-1, N)).repeat_interleave(repeat, dim=1).flatten(1)
    B = B.unflatten(-1, (-1, N)).repeat_interleave(repeat, dim=1)
    C = C.unflatten(-1, (-1, N))
    taps = part["mixer.conv1d.weight"][:, 0]
    padded = torch.cat([x.new_zeros(taps.shape[1] - 1, E), x])
    x = sum(padded[tap : tap + len(x)] * taps[:, tap] for tap in range(taps.shape[1]))
    x = F.silu(x + part.get("mixer.conv1d.bias", torch.zeros(())))
    A, state, outputs = -part["mixer.A_log"].exp(), x.new_zeros(E, N), []
    for t in range(len(x)):
        B_EN, C_EN = (values[t].repeat_interleave(N, dim=0) for values in (B, C))
        state = (dt[t, :, None] * A).exp() * state + (dt[t] * x[t])[:, None] * B_EN
        outputs.append((state * C_EN).sum(-1) + part["mixer.D"] * x[t])
    return project("out_proj", torch.stack(outputs) * F.silu(z))
