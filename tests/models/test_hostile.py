"""Model folders that are broken, or meant to harm: one sentence each, and no code is run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import hybridize.core.whole_folder as whole_folder_module
from hybridize.core.errors import MachineError, ModelError
from hybridize.core.limits import LIMITS
from hybridize.models import load_model, load_tokenizer, save_model
from hybridize.models.folders import Contents, build_outline, read_contents
from hybridize.models.loading import is_finite, load_outline, read_tensors
from hybridize.surgery import convert
from tests.models.apriel import Form, make_checkpoint
from tests.tiny import as_student, tiny_teacher, tokens

FAST, DEEP = 60, 1_000
"""Configurations a fuzzing test tries, by default and with -m slow."""
KINDS = ("teacher", "student", "published")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save a teacher, a student of ours, and a published checkpoint."""
    home = tmp_path_factory.mktemp("models")
    tiny_teacher(layers=2).save_pretrained(home / "teacher")
    teacher = as_student(tiny_teacher(layers=2))
    student = convert(teacher, teacher.layout.convert([1], to="mamba2"))
    save_model(student, None, home / "student")
    make_checkpoint(home / "published", Form(codes=("t", "m2")))
    return {name: home / name for name in KINDS}


@pytest.fixture(params=KINDS)
def broken(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Path:
    """Copy a folder, to be damaged."""
    return Path(shutil.copytree(folders[request.param], tmp_path / "broken"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def set_value(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = value

    return change


DAMAGES = {
    "missing": (lambda t: t.pop("model.norm.weight"), r"1 tensors are missing, .*model\.norm"),
    "extra": (
        set_value("model.layers.0.mlp.gate_proj.weight_scale", torch.ones(1)),
        r"1 tensors belong to no part .* first is model\.layers\.0\.mlp\.gate_proj\.weight_scale",
    ),
    "shape": (set_value("model.norm.weight", torch.ones(5)), r"model\.norm\.weight .*shape \(5,\)"),
    "scalar": (set_value("model.norm.weight", torch.ones(())), r"model\.norm\.weight .*shape \(\)"),
    "nan": (poison(float("nan")), r"model\.norm\.weight holds values that are not finite"),
    "infinity": (poison(float("-inf")), r"model\.norm\.weight holds values that are not finite"),
    "type": (
        set_value("model.norm.weight", torch.ones(32, dtype=torch.int8)),
        r"model\.norm\.weight is stored as I8\. Only weights stored as F64, F32",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_weights_are_named(name: str, broken: Path) -> None:
    change, message = DAMAGES[name]
    with pytest.raises(ModelError, match=message) as caught:
        load_model(change_tensors(broken, change))
    assert "\n" not in str(caught.value) and str(broken) in str(caught.value)


def test_weights_that_are_not_finite_can_be_asked_for(broken: Path) -> None:
    change_tensors(broken, poison(float("nan")))
    model = load_model(broken, allow_nan=True)
    assert model(tokens(vocab=60)).logits.isnan().any()


def test_harmless_extra_tensors_are_passed_by(broken: Path) -> None:
    before = load_model(broken)(tokens(vocab=60)).logits
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(broken, set_value(name, torch.ones(4)))
    assert torch.equal(load_model(broken)(tokens(vocab=60)).logits, before)


CONFIGS = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers .*1000000000"),
    "more-layers": ({"num_hidden_layers": 3}, "num_hidden_layers 3, but"),
    "fraction": ({"hidden_size": 32.5}, "hidden_size in config.json is 32.5, not a whole number"),
    "text": ({"vocab_size": "64"}, "vocab_size in config.json is '64', not a whole number"),
    "negative": ({"num_attention_heads": -4}, "num_attention_heads in config.json is -4"),
    "boolean": ({"num_key_value_heads": True}, "num_key_value_heads in config.json is True"),
    "huge": ({"intermediate_size": 2**70}, "intermediate_size in config.json is"),
    "width": ({"hidden_size": 64}, "hidden_size 64, but the tensors have 32"),
    "heads": ({"num_attention_heads": 16}, "has shape|no gates|describes no model|cannot be"),
    "activation": ({"hidden_act": "boom"}, "describes no model"),
    "padding": ({"pad_token_id": 10**6}, "describes no model"),
    "rope": ({"rope_parameters": {"rope_type": "spiral"}}, "describes no model"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_lies_is_refused(name: str, broken: Path) -> None:
    changes, message = CONFIGS[name]

    def change(values: dict[str, Any]) -> None:
        values.get("teacher", values).update(changes)

    with pytest.raises(ModelError, match=message) as caught:
        load_model(change_config(broken, change))
    assert "\n" not in str(caught.value)


STUDENTS = {
    "no-teacher": ({"teacher": None}, "config.json has no teacher"),
    "short": ({"mixers": ["attention"]}, "no list of 2 kinds"),
    "numbers": ({"mixers": [1, 2]}, "no list of 2 kinds"),
    "unknown": ({"mixers": ["attention", "hyena"]}, "mixer 'hyena' is not known"),
    "options": ({"mixer_options": {"mamba2": 3}}, "no mapping of mappings"),
    "option": ({"mixer_options": {"mamba2": {"depth": 3}}}, "'depth' is not an option"),
    "value": ({"mixer_options": {"mamba2": {"expand": "x"}}}, "."),
    "no-mixer": ({"mixers": ["attention", "os:system"]}, "not a subclass"),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_that_lies_is_refused(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    changes, message = STUDENTS[name]
    folder = Path(shutil.copytree(folders["student"], tmp_path / "broken"))
    with pytest.raises(ModelError, match=message):
        load_model(change_config(folder, lambda values: values.update(changes)))


def test_quantised_weights_are_refused(broken: Path) -> None:
    change_config(broken, lambda v: v.update({"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match="its weights are quantised"):
        load_model(broken)


@pytest.mark.parametrize("package", ["evil", "broken.evil"])
def test_no_mixer_is_imported_from_the_model_folder(
    package: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folders["student"], tmp_path / "broken"))
    (folder / "evil.py").write_text("raise SystemExit('code of the folder has run')\n")
    change_config(folder, lambda values: values.update(mixers=["attention", f"{package}:Mixer"]))
    monkeypatch.syspath_prepend(str(folder if package == "evil" else tmp_path))
    with pytest.raises(ModelError, match="would run code out of the model folder"):
        load_model(folder)
    assert package not in sys.modules


def test_no_attention_is_fetched_from_the_hub(broken: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for part in (values, values.get("teacher", values)):
            part.update(attn_implementation="evil/kernels", _attn_implementation="evil/kernels")
            part.update(experts_implementation="evil/kernels")

    model = load_model(change_config(broken, change))
    assert model.config._attn_implementation == "sdpa"
    assert model.config.teacher._attn_implementation == "sdpa"


def test_a_broken_generation_config_is_named(broken: Path) -> None:
    (broken / "generation_config.json").write_text('{"max_new_tokens": ')
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read"):
        load_model(broken)


def test_no_code_of_a_tokenizer_is_run(broken: Path) -> None:
    (broken / "tokenization_evil.py").write_text("raise SystemExit('remote code has run')\n")
    values = {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]},
    }
    (broken / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        load_tokenizer(broken)


def test_a_head_that_is_tied_by_name_only_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny_teacher(layers=2).save_pretrained(folder)
    change_config(folder, lambda values: values.update(tie_word_embeddings=True))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load_model(folder)
    head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, set_value("lm_head.weight", head.clone()))
    assert load_model(folder).config.tie_word_embeddings


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


def list_paths(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return [path]
    inner = [more for key in values for more in list_paths(values[key], (*path, key))]
    return [path, *inner] if path else inner


def fuzz(folder: Path, copy: Path, data: st.DataObject) -> None:
    """Change one to three values of a config.json; the model loads, or is refused in a sentence."""
    values = json.loads((folder / "config.json").read_text())
    paths = list_paths(values)
    for _ in range(data.draw(st.integers(1, 3))):
        *home, key = data.draw(st.sampled_from(paths))
        part = values
        for step in home:
            part = part.get(step, {}) if isinstance(part, dict) else {}
        if not isinstance(part, dict):
            continue
        if data.draw(st.booleans()):
            part[key] = data.draw(JSON)
        else:
            part.pop(key, None)
    (copy / "config.json").write_text(json.dumps(values))
    try:
        load_outline(copy)
        contents: Contents = read_contents(copy)
        model = build_outline(contents)
        read_tensors(contents, model)
    except ModelError as error:
        assert str(error).isprintable(), str(error)
        return
    assert len(model.model.layers) <= LIMITS["num_hidden_layers"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=FAST, deadline=None)
@given(data=st.data())
def test_any_config_loads_or_is_refused(
    kind: str, folders: dict[str, Path], tmp_path_factory: Any, data: st.DataObject
) -> None:
    copy = tmp_path_factory.getbasetemp() / f"fuzz-{kind}"
    if not copy.exists():
        shutil.copytree(folders[kind], copy)
    fuzz(folders[kind], copy, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=DEEP, deadline=None)
@given(data=st.data())
def test_deep_any_config_loads_or_is_refused(
    kind: str, folders: dict[str, Path], tmp_path_factory: Any, data: st.DataObject
) -> None:
    copy = tmp_path_factory.getbasetemp() / f"deep-{kind}"
    if not copy.exists():
        shutil.copytree(folders[kind], copy)
    fuzz(folders[kind], copy, data)


def test_saving_says_that_the_disk_is_too_small(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(whole_folder_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MachineError, match=r"needs .*KiB, but the disk has .* left"):
        save_model(load_model(folders["teacher"]), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_is_told_from_not_finite(dtype: torch.dtype) -> None:
    largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest), "the sum overflows, the values do not"
    for value in (float("nan"), float("inf"), float("-inf")):
        weights = torch.randn(1000).to(dtype)
        weights[[3, 500]] = value
        assert not is_finite(weights)
        weights[3] = -value
        assert not is_finite(weights)
    assert is_finite(torch.empty(0, dtype=dtype))
