"""Every family: the teacher's numbers from its folder, clean conversions, the same loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridize.core.errors import ModelError
from hybridize.core.shape import ModelShape
from hybridize.models import HybridForCausalLM, load_model, save_model
from hybridize.models.families import FAMILIES, find_family
from hybridize.models.mixers import MIXERS
from hybridize.ops.divergence import reverse_kl
from hybridize.surgery import convert
from hybridize.training.data import Batch
from hybridize.training.objectives import Distillation, NextToken
from tests.close import assert_close
from tests.tiny import FAMILY_NAMES, as_student, tiny_teacher, tokens

OPTIONS: dict[str, dict[str, Any]] = {"mamba1": {"state_size": 4}, "sliding": {"window": 8}}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = {"factor": 4.0, "original_max_position_embeddings": 16}
FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0], "partial_rotary_factor": 0.5}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILY_NAMES},
    "llama-llama3": (
        "llama",
        rope("llama3", **LLAMA3, original_max_position_embeddings=16),
    ),
    "llama-linear": ("llama", rope("linear", factor=2.0)),
    "llama-dynamic": ("llama", rope("dynamic", factor=2.0) | {"max_position_embeddings": 16}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mistral-head-yarn": ("mistral", {"head_dim": 12} | rope("yarn", **SCALED)),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "qwen2-yarn": ("qwen2", {"tie_word_embeddings": True} | rope("yarn", **SCALED)),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 16}),
    "smollm3-untied-yarn": ("smollm3", {"tie_word_embeddings": False} | rope("yarn", **SCALED)),
    "phi3-switch": (
        "phi3",
        {"original_max_position_embeddings": 28} | rope("longrope", **FACTORS),
    ),
    "phi3-longrope": (
        "phi3",
        {"original_max_position_embeddings": 64} | rope("longrope", **FACTORS),
    ),
}


def write_folder(folder: Path, case: str) -> PreTrainedModel:
    """Save a tiny teacher with transformers and load it again, as a user would have it."""
    family, changes = FOLDERS[case]
    tiny_teacher(family, **changes).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def generate(model: Any, **options: Any) -> list[torch.Tensor]:
    """Go on from a left-padded batch with a cache; return the tokens and the logits of each."""
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :5] = 0
    options |= {"max_new_tokens": 10, "do_sample": False, "use_cache": True}
    made = model.generate(
        tokens(), attention_mask=mask, return_dict_in_generate=True, output_logits=True, **options
    )
    return [made.sequences, *made.logits]


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_gives_the_teachers_numbers(case: str, tmp_path: Path) -> None:
    teacher = write_folder(tmp_path / "teacher", case)
    student = load_model(tmp_path / "teacher")
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert torch.equal(student(tokens()).logits, teacher(tokens()).logits)
    assert_same(generate(student), generate(teacher))
    save_model(student, None, tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    fresh = load_model(tmp_path / "teacher")
    assert torch.equal(again(tokens()).logits, fresh(tokens()).logits)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_config_in_the_published_form_gives_the_same_rope(family: str, tmp_path: Path) -> None:
    changes = rope("llama3", **LLAMA3, original_max_position_embeddings=16)
    tiny_teacher(family, **changes).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    scaling = values.pop("rope_parameters")
    values |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(values))
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert teacher.config.rope_parameters["rope_type"] == "llama3"
    assert torch.equal(load_model(tmp_path)(tokens()).logits, teacher(tokens()).logits)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_bfloat16_gives_the_teachers_numbers(family: str) -> None:
    teacher = tiny_teacher(family)
    student = as_student(teacher).bfloat16()
    assert torch.equal(student(tokens()).logits, teacher.bfloat16()(tokens()).logits)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_conversion_touches_one_mixer(family: str, kind: str) -> None:
    teacher = as_student(tiny_teacher(family))
    before = teacher.state_dict()
    layout = teacher.layout.convert([2], to=kind)
    student = convert(teacher, layout, options=OPTIONS.get(kind))
    after = student.state_dict()
    gone = {name for name in before if name.startswith("model.layers.2.self_attn.")}
    kept = {name for name in after if not name.startswith("model.layers.2.mixer.")}
    assert gone and kept == before.keys() - gone
    for name in kept:
        assert torch.equal(after[name], before[name]), name
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == (
        teacher.config.tie_word_embeddings
    )
    assert len(student(tokens(), output_hidden_states=True).hidden_states) == 5
    cache = student.make_cache()
    pieces = [student(part, past_key_values=cache).logits for part in tokens().split([13, 11], 1)]
    assert_close(torch.cat(pieces, dim=1), student(tokens()).logits, 1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_loss_through_the_head_is_the_loss_through_the_logits(family: str) -> None:
    teacher = as_student(tiny_teacher(family)).double()
    student = as_student(tiny_teacher(family, seed=1)).double()
    segments = torch.tensor([[1] * 24, [1] * 10 + [2] * 14])
    rows = Batch(tokens(), segments, segments == segments, 0)
    places = rows.predicting_N
    logits = [
        model(rows.input_ids_BT, segments=segments).logits.flatten(0, 1)[places].log_softmax(-1)
        for model in (student, teacher)
    ]
    targets = rows.input_ids_BT.flatten()[places + 1]
    wanted = {
        "reverse_kl": (logits[0].exp() * (logits[0] - logits[1])).sum(),
        "cross_entropy": -logits[0].gather(1, targets[:, None]).sum(),
    }
    names = [name for name, _ in student.named_parameters()]
    for objective, name in ((Distillation(teacher), "reverse_kl"), (NextToken(), "cross_entropy")):
        loss = objective(student, rows)
        assert_close(loss.total, wanted[name], 1e-10)
        found = torch.autograd.grad(loss.total, [*student.parameters()])
        expected = torch.autograd.grad(wanted[name], [*student.parameters()], retain_graph=True)
        for parameter, ours, theirs in zip(names, found, expected, strict=True):
            assert (ours - theirs).norm() <= 1e-8 * theirs.norm() + 1e-12, parameter
    assert reverse_kl(logits[0], torch.zeros_like(logits[0]))[0].abs().max() < 1e-12


@pytest.mark.parametrize("family", ["llama", "smollm3"])
def test_a_tied_head_stays_tied(family: str, tmp_path: Path) -> None:
    teacher = as_student(tiny_teacher(family, tie_word_embeddings=True))
    student = convert(teacher, teacher.layout.convert([0], to="mamba2"))
    save_model(student, None, tmp_path / "student")
    for model in (student, load_model(tmp_path / "student")):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, teacher.model.embed_tokens.weight)


def test_an_unknown_family_is_refused_with_the_known_ones_and_the_way_to_add_one(
    tmp_path: Path,
) -> None:
    tiny_teacher().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for read in (load_model, ModelShape.read):
        with pytest.raises(ModelError, match="'gpt_neox' is not a known family") as caught:
            read(tmp_path)
        text = str(caught.value)
        assert str(tmp_path) in text and "docs/families.md" in text
        assert all(name in text for name in FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_names_what_the_attention_and_the_layer_have(name: str) -> None:
    family = find_family(name)
    assert family.name == name
    layer = tiny_teacher(name).model.layers[0]
    norms = {key for key, part in layer.named_children() if isinstance(part, family.norm)}
    assert norms == {norm for norm in vars(family.norms).values() if norm}
    assert isinstance(layer.self_attn, family.attention) and isinstance(layer.mlp, family.mlp)
    assert isinstance(as_student(tiny_teacher(name)), HybridForCausalLM)
