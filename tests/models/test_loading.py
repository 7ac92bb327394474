"""Folders: what is saved loads back, here and in transformers; what is broken says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hybridize.core.errors import ModelError
from hybridize.models import load_model, load_tokenizer, save_model
from hybridize.surgery import convert
from tests.tiny import FAMILY_NAMES, as_student, tiny_teacher, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny Llama as transformers does."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    tiny_teacher().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """Copy the folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def word_tokenizer(num_words: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with this many words."""
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({f"w{n}": n for n in range(num_words)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_teacher_folder_loads_bit_for_bit(family: str, tied: bool, tmp_path: Path) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=tied)
    teacher.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert str(model.layout) == "AAAA" and not model.training
    assert torch.equal(model(tokens()).logits, teacher(tokens()).logits)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.num_parameters() == teacher.num_parameters()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_a_student_loads_back_here_and_in_transformers(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    teacher = as_student(tiny_teacher(tie_word_embeddings=tied))
    options = {"state_size": 4} if kind == "mamba1" else {"expand": 2}
    student = convert(teacher, teacher.layout.convert([1, 3], to=kind), options=options)
    student.config.last_training_window = 77
    for _ in range(2):
        saved = save_model(student, word_tokenizer(60), tmp_path / "student")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]
    ours, theirs = load_model(saved), AutoModelForCausalLM.from_pretrained(saved)
    for model in (ours, theirs):
        assert model.layout == student.layout and model.config.last_training_window == 77
        assert torch.equal(model(tokens()).logits, student(tokens()).logits)
    save_model(ours, None, tmp_path / "again")
    first, second = (path / "model.safetensors" for path in (saved, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    assert len(load_tokenizer(saved)) == 60
    assert AutoConfig.from_pretrained(saved).teacher.model_type == "llama"


def test_bfloat16_keeps_decays_in_float32(tmp_path: Path) -> None:
    teacher = as_student(tiny_teacher())
    save_model(convert(teacher, teacher.layout.convert([1], to="mamba2")), None, tmp_path / "s")
    ours = load_model(tmp_path / "s", dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "s", dtype=torch.bfloat16)
    for model in (ours, theirs):
        exact = {n.split(".")[-1] for n, p in model.named_parameters() if p.dtype == torch.float32}
        assert exact == {"A_log", "D", "dt_bias"} and model.dtype == torch.bfloat16
    assert torch.equal(ours(tokens()).logits, theirs(tokens()).logits)
    saved = save_model(ours, None, tmp_path / "half")
    assert torch.equal(load_model(saved)(tokens()).logits, ours(tokens()).logits)


def test_shards_are_read_together(broken: Path) -> None:
    whole = load_model(broken)(tokens()).logits
    tensors = load_file(broken / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, broken / file)
    index = {name: file for file, part in parts.items() for name in part}
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (broken / "model.safetensors").unlink()
    assert torch.equal(load_model(broken)(tokens()).logits, whole)
    (broken / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing\. Copy it there"):
        load_model(broken)


def test_a_truncated_file_is_named(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated"):
        load_model(broken)


def test_a_wrong_shape_is_named(broken: Path) -> None:
    path = broken / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* has shape \(5,\)"):
        load_model(broken)


def test_a_missing_tensor_is_named(broken: Path) -> None:
    path = broken / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"1 tensors are missing, the first is model\.norm"):
        load_model(broken)


def test_an_unknown_family_lists_the_known_ones(broken: Path) -> None:
    (broken / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    with pytest.raises(ModelError, match=r"'gpt_neox' is not a known family .*llama, mistral"):
        load_model(broken)


def test_pickles_are_never_loaded(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, never loaded"):
        load_model(broken)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "config.json is missing"), ("{", "is not JSON")]
)
def test_a_broken_config_is_named(broken: Path, content: str | None, message: str) -> None:
    path = broken / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(broken)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "nowhere", "a/b/c"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_model(path)


def test_a_tokenizer_must_fit_the_embedding(broken: Path) -> None:
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        load_tokenizer(broken)
    word_tokenizer(65).save_pretrained(broken)
    with pytest.raises(ModelError, match="65 tokens, but the embedding has 64 rows"):
        load_tokenizer(broken)


def test_a_published_apriel_h1_config_gives_its_mixers(tmp_path: Path) -> None:
    teacher = as_student(tiny_teacher("mistral"))
    options = {"state_size": 4, "conv_width": 4, "repeat": "state", "dt_bias": "twice"}
    student = convert(teacher, teacher.layout.convert([1, 2], to="mamba1"), options=options)
    folder = save_model(student, None, tmp_path / "published")
    values = teacher.config.teacher.to_dict() | {
        "model_type": "apriel_ssm_thinker_hybrid",
        "hybrid_block_layout": ["t", "m2", "m2", "t"],
        "ssm_cfg": {"d_state": 4, "d_conv": 4, "d_xb": 16, "d_inner": 32, "dt_rank": "auto"},
    }
    (folder / "config.json").write_text(json.dumps(values))
    model = load_model(folder)
    assert model.config.mixer_options == {"mamba1": options}
    assert torch.equal(model(tokens()).logits, student(tokens()).logits)
    values["hybrid_block_layout"][1] = "gdn"
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="names gdn, but only t, m2, i"):
        load_model(folder)
