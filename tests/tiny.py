"""Tiny teachers of every family, built with transformers from a fixed seed."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hybridize.models.families import FAMILIES, find_family
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM

FAMILY_NAMES = tuple(FAMILIES)
TELLING: dict[str, dict[str, object]] = {
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
        "logits_scaling": 6.0,
    },
    "phi3": {"rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
    "smollm3": {"no_rope_layer_interval": 2},
}
"""Values that make a family differ from Llama, where its defaults would not in so small a model."""


def tiny_teacher(
    family: str = "llama",
    *,
    layers: int = 4,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 64,
    seed: int = 0,
    **changes: object,
) -> PreTrainedModel:
    """Build a teacher of transformers' own class, with random weights large enough to matter."""
    values = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "max_position_embeddings": 512,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(family, **(values | TELLING.get(family, {}) | changes))
    torch.manual_seed(seed)
    teacher = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return teacher.eval()


def as_student(teacher: PreTrainedModel) -> HybridForCausalLM:
    """Put the tensors of a teacher into an all-attention student."""
    config = HybridConfig(
        teacher=find_family(teacher.config.model_type).config(**teacher.config.to_dict())
    )
    student = HybridForCausalLM(config)
    student.load_state_dict(teacher.state_dict())
    student.tie_weights()
    return student.eval()


def tokens(
    num_rows: int = 2, num_tokens: int = 24, *, vocab: int = 64, seed: int = 1
) -> torch.Tensor:
    """Draw token ids that avoid the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab, (num_rows, num_tokens), generator=generator)
