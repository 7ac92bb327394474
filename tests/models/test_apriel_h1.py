"""Published Apriel-H1 checkpoints: the official numbers, other forms of the layout, and back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import hybridize as hz
from hybridize.core.auto_names import APRIEL_H1
from hybridize.core.errors import ModelError
from hybridize.core.model_files import list_tensors
from hybridize.models import HybridForCausalLM, load_model
from hybridize.models.model import Model
from tests.models.apriel import (
    FIXTURE,
    VOCABULARY,
    Form,
    make_checkpoint,
    make_config,
    make_tensors,
    published_logits,
    write,
)
from tests.tiny import as_student, tiny_teacher, tokens

LARGEST = 1e-4
"""Allowed difference of float32 logits; those of the fixture differ by less than 1e-6."""
FORMS = {
    "plain": Form(),
    "state-2": Form(state=2),
    "state-16-over-heads-of-8": Form(state=16, kv_heads=2),
    "conv-2": Form(conv=2),
    "conv-7": Form(conv=7),
    "no-sharing": Form(kv_heads=4),
    "one-key-head": Form(heads=6, kv_heads=1),
    "rank-5": Form(rank=5),
    "rank-stated-wrongly": Form(rank=3, config={"ssm_cfg": {"d_state": 4, "dt_rank": 16}}),
    "free-widths": Form(inner=48, shared=12),
    "heads-wider-than-the-model": Form(heads=4, head_dim=16),
    "tied": Form(tied=True),
    "joint": Form(joint=True, rank=3),
    "joint-with-biases": Form(joint=True, biases=("conv1d", "dt_proj", "in_proj", "out_proj")),
    "biases": Form(biases=("conv1d", "dt_proj", "in_proj", "dt_in_proj", "out_proj")),
    "no-biases": Form(biases=()),
    "left-out": Form(codes=("t", "i", "m2", "t")),
    "no-attention": Form(codes=("m2", "m2")),
    "no-mamba": Form(codes=("t", "t")),
    "few-keys": Form(
        config={
            **{"num_hidden_layers": None, "vocab_size": None, "hidden_size": None},
            **{"intermediate_size": None, "head_dim": None, "num_key_value_heads": None},
            **{"hybrid_block_layout": None, "ssm_cfg": {}, "architectures": None},
            **{"bos_token_id": None, "eos_token_id": None, "torch_dtype": None},
        }
    ),
}


def largest(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (found.double() - wanted.double()).abs().max().item()


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module", params=["ours", "transformers"])
def official(request: pytest.FixtureRequest) -> HybridForCausalLM:
    if request.param == "ours":
        return load_model(FIXTURE)
    return AutoModelForCausalLM.from_pretrained(FIXTURE)


def step_by_step(model: HybridForCausalLM, ids: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Return the logits after each of `more`, fed one token at a time behind `ids`."""
    cache = model.make_cache()
    model(ids, past_key_values=cache)
    steps = [model(more[:, [t]], past_key_values=cache).logits for t in range(more.shape[1])]
    return torch.cat(steps, dim=1)


@torch.no_grad()
def test_the_official_numbers_come_out(official: Any, expected: dict[str, torch.Tensor]) -> None:
    ids, greedy = expected["input_ids"], expected["greedy_ids"]
    assert type(official) is HybridForCausalLM and str(official.layout) == "AmmA"
    assert largest(official(ids).logits, expected["prefill_logits"]) < LARGEST
    for row in range(2):
        alone = official(ids[[row]]).logits
        assert largest(alone, expected["prefill_logits"][[row]]) < LARGEST
    length = greedy.shape[1]
    made = official.generate(ids, max_new_tokens=length, do_sample=False, eos_token_id=None)
    assert torch.equal(made[:, ids.shape[1] :], greedy)
    decoded = step_by_step(official, ids, greedy)
    assert largest(decoded, expected["decode_logits"]) < LARGEST


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(
    official: Any, expected: dict[str, torch.Tensor]
) -> None:
    ids, greedy = expected["input_ids"], expected["greedy_ids"]
    padded = torch.cat([torch.full((2, 9), 7), ids], dim=1)
    padded[1, :9] = 50
    mask = torch.ones_like(padded)
    mask[:, :9] = 0
    logits = official(padded, attention_mask=mask).logits[:, 9:]
    # Rotary positions are counted from the padding on, which rounds otherwise.
    assert largest(logits, expected["prefill_logits"]) < LARGEST
    options = {"max_new_tokens": greedy.shape[1], "do_sample": False, "eos_token_id": None}
    made = official.generate(padded, attention_mask=mask, **options)
    assert torch.equal(made[:, padded.shape[1] :], greedy)
    short = torch.cat([torch.full((1, 6), 3), ids[1:, :18]], dim=1)
    mixed, mixed_mask = torch.cat([ids[:1], short]), torch.ones(2, 24, dtype=torch.long)
    mixed_mask[1, :6] = 0
    logits = official(mixed, attention_mask=mixed_mask).logits
    assert largest(logits[0], expected["prefill_logits"][0]) < LARGEST
    assert largest(logits[1, 6:], expected["prefill_logits"][1, :18]) < LARGEST


@torch.no_grad()
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", FORMS)
def test_other_forms_of_the_layout_load(name: str, shards: int, tmp_path: Path) -> None:
    form = FORMS[name]
    folder, tensors = make_checkpoint(tmp_path / "m", form, shards=shards), make_tensors(form)
    ids = tokens(2, 15, vocab=VOCABULARY)
    wanted = torch.stack([published_logits(form, tensors, row) for row in ids])
    model = load_model(folder)
    assert largest(model(ids).logits, wanted) < LARGEST
    if shards == 1:
        auto = AutoModelForCausalLM.from_pretrained(folder)
        assert largest(auto(ids).logits, wanted) < LARGEST
        assert torch.equal(auto(ids).logits, model(ids).logits)
    decoded = step_by_step(model, ids[:, :9], ids[:, 9:])
    assert largest(decoded, wanted[:, 9:]) < LARGEST


@pytest.mark.parametrize("how", ["load_model", "auto"])
@pytest.mark.parametrize("name", ["plain", "joint", "left-out", "tied"])
def test_mixed_types_are_kept(name: str, how: str, tmp_path: Path) -> None:
    form = FORMS[name]
    exact = ("dt_proj.bias", "A_log")
    tensors = {
        key: tensor if key.endswith(exact) else tensor.bfloat16()
        for key, tensor in make_tensors(form).items()
    }
    folder = write(tmp_path / "m", make_config(form) | {"torch_dtype": "bfloat16"}, tensors)
    if how == "load_model":
        model = load_model(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    kept = {
        key.split(".", 3)[-1] for key, p in model.named_parameters() if p.dtype == torch.float32
    }
    assert kept == {"mixer.dt_proj.bias", "mixer.A_log", "mixer.D"}
    assert model.dtype == torch.bfloat16
    logits = model(tokens(1, 12, vocab=VOCABULARY)).logits
    wanted = published_logits(form, tensors, tokens(1, 12, vocab=VOCABULARY)[0])
    assert logits.dtype == torch.bfloat16
    assert largest(logits[0], wanted) < 0.1 * wanted.abs().max()
    whole = load_model(folder, dtype=torch.float32)
    assert largest(whole(tokens(1, 12, vocab=VOCABULARY)).logits[0], wanted) < LARGEST


@pytest.mark.parametrize("model_type", [*APRIEL_H1, "mistral", "something_else", None])
def test_it_is_told_by_what_it_holds(model_type: str | None, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", Form(config={"model_type": model_type}))
    assert str(load_model(folder).layout) == "AmAm"
    values = json.loads((folder / "config.json").read_text())
    for key in ("hybrid_block_layout", "ssm_cfg"):
        del values[key]
        (folder / "config.json").write_text(json.dumps(values))
        assert str(load_model(folder).layout) == "AmAm"


@pytest.mark.parametrize("model_type", APRIEL_H1)
def test_transformers_knows_every_name(model_type: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", Form(config={"model_type": model_type}, rank=3))
    config = AutoConfig.from_pretrained(folder)
    assert config.mixer_options["mamba1"]["step_rank"] == 3
    assert str(AutoModelForCausalLM.from_pretrained(folder).layout) == "AmAm"


@pytest.mark.parametrize("model_type", ["mistral", "llama", "something_else", None])
@pytest.mark.parametrize("trust", [None, True])
def test_transformers_is_told_by_the_keys_whatever_the_name(
    model_type: str | None, trust: bool | None, tmp_path: Path
) -> None:
    form = Form(config={"model_type": model_type})
    folder = make_checkpoint(tmp_path / "m", form)
    (folder / "modeling_evil.py").write_text("raise SystemExit('remote code has run')\n")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    assert type(model) is HybridForCausalLM and str(model.layout) == "AmAm"
    assert model.config.published["config"].get("model_type") == model_type
    ids = tokens(1, 12, vocab=VOCABULARY)
    assert (
        largest(model(ids).logits[0], published_logits(form, make_tensors(form), ids[0])) < LARGEST
    )


def test_other_models_are_read_as_before(tmp_path: Path) -> None:
    teacher = tiny_teacher("mistral")
    teacher.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(teacher)

    class Config(PreTrainedConfig):
        model_type = "of_a_user"

    AutoConfig.register("of_a_user", Config)
    assert type(AutoConfig.for_model("of_a_user")) is Config
    with pytest.raises(ValueError, match="not consistent"):
        AutoConfig.register("of_another", Config)


@pytest.mark.parametrize("first", ["hybridize", "transformers"])
def test_import_hybridize_is_enough(first: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", Form())
    for name in ("configuration_evil", "modeling_evil"):
        (folder / f"{name}.py").write_text("raise SystemExit('remote code has run')\n")
    student = hz.load_model(folder).save(tmp_path / "student")
    imports = ["import hybridize, sys", "from transformers import AutoModelForCausalLM"]
    text = [
        *(imports if first == "hybridize" else reversed(imports)),
        "assert 'hybridize.models' not in sys.modules",
        f"for folder in ({str(folder)!r}, {str(student)!r}):",
        "    print(AutoModelForCausalLM.from_pretrained(folder).layout)",
        "    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(text)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["AmAm", "AmAm"]


WRONG = {
    "layout": ({"hybrid_block_layout": ["t", "t", "t", "m2"]}, "layer 1 is 't'"),
    "length": ({"hybrid_block_layout": ["t", "m2"]}, "num_hidden_layers 4"),
    "code": (
        {"hybrid_block_layout": ["t", "gdn", "t", "m2d"]},
        "names gdn, m2d, but only t, m2, i",
    ),
    "no-list": ({"hybrid_block_layout": "tmtm"}, "not a list of layers"),
    "no-mapping": ({"ssm_cfg": [1]}, "no mapping of settings"),
    "state": ({"ssm_cfg": {"d_state": 8}}, "ssm_cfg.d_state 8, but the tensors have 4"),
    "inner": ({"ssm_cfg": {"d_inner": 64}}, "ssm_cfg.d_inner 64, but the tensors have 32"),
    "shared": ({"ssm_cfg": {"d_xb": 8}}, "ssm_cfg.d_xb 8, but the tensors have 16"),
    "conv": ({"ssm_cfg": {"d_conv": 3}}, "ssm_cfg.d_conv 3, but the tensors have 4"),
    "no-size": ({"ssm_cfg": {"d_state": "many"}}, "ssm_cfg.d_state in config.json is 'many'"),
    "width": ({"hidden_size": 64}, "hidden_size 64, but the tensors have 32"),
    "words": ({"vocab_size": 100}, "vocab_size 100, but the tensors have 61"),
    "heads": ({"num_attention_heads": 2}, "q_proj.weight .* has shape"),
    "ffn": ({"intermediate_size": 100}, "gate_proj.weight .* has shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_config_that_disagrees_with_the_tensors_is_refused(name: str, tmp_path: Path) -> None:
    change, message = WRONG[name]
    folder = make_checkpoint(tmp_path / "m", Form(config=change))
    with pytest.raises(ModelError, match=message):
        load_model(folder)


MAMBA = Form(codes=("t", "m2"))
BIASES = {
    "conv-lost": (MAMBA, "conv1d.bias", {}, "conv_bias the mixers have a bias.* is missing"),
    "step-lost": (MAMBA, "dt_proj.bias", {}, "dt_proj_bias the mixers have a bias.* is missing"),
    "conv-too-many": (MAMBA, None, {"conv_bias": False}, "no bias, but mixer.conv1d.bias is there"),
    "step-too-many": (MAMBA, None, {"dt_proj_bias": False}, "but mixer.dt_proj.bias is there"),
    "linear-lost": (MAMBA, None, {"bias": True}, "a bias, but mixer.in_proj.bias is missing"),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_that_is_lost_or_too_many_is_named(name: str, tmp_path: Path) -> None:
    form, lost, changes, message = BIASES[name]
    tensors = {k: t for k, t in make_tensors(form).items() if not lost or not k.endswith(lost)}
    values = make_config(form)
    values["ssm_cfg"] |= changes
    with pytest.raises(ModelError, match=message) as caught:
        load_model(write(tmp_path / "m", values, tensors))
    assert "\n" not in str(caught.value)


def test_a_mixer_that_is_none_of_apriels_is_refused(tmp_path: Path) -> None:
    form, tensors = Form(), make_tensors(Form())
    tensors["model.layers.1.mixer.A_log"] = torch.zeros(4)
    with pytest.raises(ModelError, match=r"mixer\.A_log has shape \(4,\)"):
        load_model(write(tmp_path / "a", make_config(form), tensors))
    tensors = make_tensors(form)
    tensors["model.layers.1.mixer.conv1d.weight"] = torch.zeros(16, 1, 4)
    with pytest.raises(ModelError, match="16 channels and the scan 32"):
        load_model(write(tmp_path / "b", make_config(form), tensors))
    with pytest.raises(ModelError, match="which are no gates"):
        load_model(make_checkpoint(tmp_path / "c", replace(form, state=4, inner=32, shared=12)))


def read_all(folder: Path) -> dict[str, tuple[Any, Any, bytes]]:
    found = {}
    for name, place in list_tensors(folder).items():
        data = place.file.read_bytes()[place.start : place.stop]
        found[name] = (place.dtype, place.shape, data)
    return found


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("name", FORMS)
def test_export_writes_back_what_was_read(name: str, dtype: str | None, tmp_path: Path) -> None:
    form = FORMS[name]
    narrow = {
        key: tensor if key.endswith(("dt_proj.bias", "norm.weight")) else tensor.bfloat16()
        for key, tensor in make_tensors(form).items()
    }
    folder = write(tmp_path / "m", make_config(form), narrow, shards=2)
    out = hz.export(
        hz.load_model(folder, dtype=dtype), tmp_path / "out", format="apriel-h1", verify=False
    )
    assert read_all(Path(out)) == read_all(folder)
    before, after = (json.loads((Path(path) / "config.json").read_text()) for path in (folder, out))
    assert before == after | {"auto_map": before["auto_map"]}
    again = hz.load_model(folder).save(tmp_path / "student")
    third = hz.export(hz.load_model(again), tmp_path / "third", format="apriel-h1", verify=False)
    assert read_all(Path(third)) == read_all(folder)


def test_the_fixture_is_written_back_byte_for_byte(tmp_path: Path) -> None:
    out = hz.export(FIXTURE, tmp_path / "out", format="apriel-h1")
    assert read_all(Path(out)) == read_all(FIXTURE)
    assert not (Path(out) / "expected.safetensors").exists()


def student_of(family: str, options: dict[str, Any], **changes: Any) -> Model:
    teacher = Model("teacher", as_student(tiny_teacher(family, **changes)), None)
    return hz.convert(teacher, teacher.layout.convert([1, 3], to="mamba1"), options=options)


PUBLISHED = {"state_size": 4, "repeat": "state", "dt_bias": "twice"}


@pytest.mark.parametrize("family", ["mistral", "llama"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_student_of_ours_can_be_exported(family: str, tied: bool, tmp_path: Path) -> None:
    student = student_of(family, PUBLISHED, tie_word_embeddings=tied, rms_norm_eps=3e-5)
    out = hz.export(student, tmp_path / "out", format="apriel-h1", verify=False)
    values = json.loads((Path(out) / "config.json").read_text())
    assert values["hybrid_block_layout"] == ["t", "m2", "t", "m2"]
    assert values["ssm_cfg"]["d_state"] == 4 and values["rms_norm_eps"] == 3e-5
    back = load_model(Path(out))
    assert torch.equal(back(tokens()).logits, student.network(tokens()).logits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


REFUSED = {
    "mamba2": ("llama", None, "has layers of mamba2"),
    "aligned": ("llama", {"state_size": 4}, "repeat: aligned and dt_bias: once"),
    "qwen3": ("qwen3", PUBLISHED, "of the family qwen3"),
    "biases": ("llama", PUBLISHED, "has biases"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(name: str, tmp_path: Path) -> None:
    family, options, message = REFUSED[name]
    if options is None:
        teacher = Model("teacher", as_student(tiny_teacher(family)), None)
        student = hz.convert(teacher, teacher.layout.convert([1], to="mamba2"))
    else:
        student = student_of(family, options, attention_bias=name == "biases")
    with pytest.raises(ModelError, match=f"{message}.*What fits: .*repeat: state"):
        hz.export(student, tmp_path / "out", format="apriel-h1")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="Did you mean apriel-h1"):
        hz.export(student, tmp_path / "out", format="apriel_h1")
