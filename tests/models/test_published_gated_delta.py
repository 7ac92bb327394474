"""GatedDelta against the Qwen3.5 text class of transformers, in which a student is hosted whole."""

import inspect

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

from hybridize.models import HybridForCausalLM
from hybridize.surgery import convert
from tests.close import assert_close
from tests.tiny import as_student, tiny_teacher, tokens

ROUTED = (
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
    "causal_conv1d_fn",
    "causal_conv1d_update",
)
"""Functions that transformers replaces by kernels where it finds them installed."""
ALLOWED = 1e-4


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take transformers' own torch code: with FLA and Triton installed it needs a GPU."""
    for name in ROUTED:
        monkeypatch.setattr(modeling_qwen3_5, name, inspect.unwrap(getattr(modeling_qwen3_5, name)))


def as_qwen(student: HybridForCausalLM, expand: int) -> modeling_qwen3_5.Qwen3_5ForCausalLM:
    """Put a Qwen 3 student with GatedDelta layers into the Qwen3.5 text class."""
    teacher = student.config.teacher
    kinds = {"attention": "full_attention", "gated_delta": "linear_attention"}
    config = Qwen3_5TextConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=teacher.hidden_size,
        intermediate_size=teacher.intermediate_size,
        num_hidden_layers=teacher.num_hidden_layers,
        num_attention_heads=teacher.num_attention_heads,
        num_key_value_heads=teacher.num_key_value_heads,
        head_dim=teacher.head_dim,
        rms_norm_eps=teacher.rms_norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": teacher.rope_parameters["rope_theta"],
            "partial_rotary_factor": 1.0,
        },
        layer_types=[kinds[kind] for kind in student.layout.mixers],
        linear_num_key_heads=teacher.num_attention_heads,
        linear_num_value_heads=expand * teacher.num_attention_heads,
        linear_key_head_dim=teacher.head_dim,
        linear_value_head_dim=teacher.head_dim,
        eos_token_id=None,
    )
    qwen = modeling_qwen3_5.Qwen3_5ForCausalLM(config).eval()
    qwen.load_state_dict(
        {
            name.replace(".mixer.", ".linear_attn."): host(name, tensor, teacher.head_dim)
            for name, tensor in student.state_dict().items()
        }
    )
    return qwen


def host(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Write a tensor as the class reads it: norms as 1 + w, and queries with a gate of 1/2."""
    if "norm" in name and ".mixer." not in name:
        return tensor - 1
    if "q_proj" in name:
        heads = tensor.unflatten(0, (-1, head_dim))
        return torch.cat([heads, torch.zeros_like(heads)], dim=1).flatten(0, 1)
    return 2 * tensor if "o_proj" in name else tensor


@pytest.fixture(params=[1, 2], ids=["expand1", "expand2"])
def pair(request: pytest.FixtureRequest) -> tuple[HybridForCausalLM, torch.nn.Module]:
    teacher = as_student(tiny_teacher("qwen3"))
    layout = teacher.layout.convert([0, 2], to="gated_delta")
    student = convert(teacher, layout, options={"expand": request.param})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".mixer." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return student, as_qwen(student, request.param)


def test_gated_delta_is_that_of_qwen(
    pair: tuple[HybridForCausalLM, torch.nn.Module],
) -> None:
    student, qwen = pair
    ids = tokens(2, 100)
    ours, theirs = student(ids).logits, qwen(ids).logits
    assert_close(ours, theirs, ALLOWED)
    ours.logsumexp(-1).sum().backward()
    theirs.logsumexp(-1).sum().backward()
    found = dict(student.named_parameters())
    for name, parameter in qwen.named_parameters():
        if ".linear_attn." in name:
            grad = found[name.replace(".linear_attn.", ".mixer.")].grad
            assert_close(grad, parameter.grad, ALLOWED)


def test_it_generates_what_qwen_generates(
    pair: tuple[HybridForCausalLM, torch.nn.Module],
) -> None:
    student, qwen = pair
    for mask_first in (0, 30):
        mask = torch.ones(2, 70, dtype=torch.long)
        mask[0, :mask_first] = 0
        options = {"attention_mask": mask, "max_new_tokens": 10, "eos_token_id": None}
        ours = student.generate(tokens(2, 70), do_sample=False, **options)
        theirs = qwen.generate(tokens(2, 70), do_sample=False, **options)
        assert torch.equal(ours, theirs)
