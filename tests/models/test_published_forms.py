"""Our mixers against implementations that are not ours, with the same weights."""

import pytest
import torch
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

from hybridize.models import HybridForCausalLM
from hybridize.surgery import convert
from tests.close import assert_close
from tests.tiny import as_student, tiny_teacher, tokens


def as_granite(student: HybridForCausalLM, expand: int) -> GraniteMoeHybridForCausalLM:
    """Put a Llama student with Mamba-2 layers into transformers' own hybrid class."""
    teacher = student.config.teacher
    kinds = {"attention": "attention", "mamba2": "mamba"}
    config = GraniteMoeHybridConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=teacher.hidden_size,
        shared_intermediate_size=teacher.intermediate_size,
        num_hidden_layers=teacher.num_hidden_layers,
        num_attention_heads=teacher.num_attention_heads,
        num_key_value_heads=teacher.num_key_value_heads,
        num_local_experts=0,
        position_embedding_type="rope",
        rope_theta=teacher.rope_parameters["rope_theta"],
        attention_multiplier=teacher.head_dim**-0.5,
        rms_norm_eps=teacher.rms_norm_eps,
        layer_types=[kinds[kind] for kind in student.layout.mixers],
        mamba_n_heads=expand * teacher.num_attention_heads,
        mamba_n_groups=teacher.num_attention_heads,
        mamba_d_state=teacher.head_dim,
        mamba_d_head=teacher.head_dim,
        mamba_expand=expand,
        mamba_chunk_size=16,
        tie_word_embeddings=False,
    )
    tensors = {}
    ours = student.state_dict()
    for name, tensor in ours.items():
        if "gate_proj" in name:
            name = name.replace("mlp.gate_proj", "shared_mlp.input_linear")
            tensor = torch.cat(
                [tensor, ours[name.replace("shared_mlp.input_linear", "mlp.up_proj")]]
            )
        elif "up_proj" in name:
            continue
        name = name.replace("mlp.down_proj", "shared_mlp.output_linear")
        tensors[name.replace(".mixer.", ".mamba.")] = tensor
    granite = GraniteMoeHybridForCausalLM(config).eval()
    granite.load_state_dict(tensors)
    return granite


@pytest.mark.parametrize("expand", [1, 2])
def test_mamba2_is_the_mamba_of_granite(expand: int) -> None:
    teacher = as_student(tiny_teacher("llama"))
    layout = teacher.layout.convert([1, 2], to="mamba2")
    student = convert(teacher, layout, options={"expand": expand})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".mixer." in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise)
    granite = as_granite(student, expand)
    assert_close(student(tokens(2, 100)).logits, granite(tokens(2, 100)).logits, 1e-4)
    for mask_first in (0, 30):
        mask = torch.ones(2, 100, dtype=torch.long)
        mask[0, :mask_first] = 0
        options = {"attention_mask": mask, "max_new_tokens": 12, "eos_token_id": None}
        ours = student.generate(tokens(2, 100), do_sample=False, **options)
        theirs = granite.generate(tokens(2, 100), do_sample=False, **options)
        assert torch.equal(ours, theirs)
