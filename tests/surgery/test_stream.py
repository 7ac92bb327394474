"""Converting folder to folder: the bytes of the long way round, in the memory of a file."""

import filecmp
import json
import runpy
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hybridize.core.errors import MachineError, ModelError
from hybridize.models import load_model, save_model
from hybridize.models.loading import load_outline
from hybridize.surgery import convert
from hybridize.surgery.fresh import FreshSettings
from hybridize.surgery.stream import stream
from tests.models.apriel import Form, make_checkpoint
from tests.test_architecture import ROOT
from tests.tiny import FAMILY_NAMES, as_student, tiny_teacher

CASES = [
    ("llama", torch.float32, False, "mamba2", {"expand": 2}),
    ("qwen3", torch.bfloat16, True, "mamba2", {}),
    ("mistral", torch.bfloat16, False, "mamba1", {"state_size": 4}),
    ("qwen2", torch.float16, False, "identity", {}),
]


def write_teacher(folder: Path, family: str = "llama", dtype=torch.float32, **changes) -> Path:
    return save_model(as_student(tiny_teacher(family, **changes)).to(dtype), None, folder)


def same_files(left: Path, right: Path, besides: Collection[str] = ()) -> bool:
    names = {path.name for path in left.iterdir()} - {*besides}
    found = {path.name for path in right.iterdir()} - {"weight_map.json", *besides}
    return names == found and all(filecmp.cmp(left / n, right / n, shallow=False) for n in names)


@pytest.mark.parametrize(("family", "dtype", "tied", "kind", "options"), CASES, ids=str)
def test_a_folder_gets_the_bytes_of_loading_converting_and_saving(
    family, dtype, tied, kind, options, tmp_path
):
    folder = write_teacher(tmp_path / "t", family, dtype, tie_word_embeddings=tied)
    model = load_model(folder)
    layout = model.layout.convert([1, 2], to=kind)
    save_model(convert(model, layout, options=options, seed=3), None, tmp_path / "whole")
    settings = FreshSettings(options=options, seed=3)
    stream(folder, layout, settings, tmp_path / "streamed")
    assert same_files(tmp_path / "whole", tmp_path / "streamed")


KINDS = {
    **{"mamba2": {"expand": 2}, "mamba1": {"state_size": 4}, "gated_delta": {"conv_bias": True}},
    **{"sliding": {"window": 8}, "identity": {}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_in_many_files_comes_out_as_in_memory(family, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridize.models.folders._SHARD_SIZE", 12_000)
    folder = write_teacher(tmp_path / "t", family, torch.bfloat16)
    assert len(list(folder.glob("*.safetensors"))) > 4
    model, options = load_model(folder), KINDS[kind]
    layout = model.layout.convert([0, 2], to=kind)
    save_model(convert(model, layout, options=options, seed=3), None, tmp_path / "whole")
    settings = FreshSettings(options=options, seed=3)
    stream(folder, layout, settings, tmp_path / "streamed", shard_bytes=12_000)
    index = "model.safetensors.index.json"
    assert same_files(tmp_path / "whole", tmp_path / "streamed", besides={index})
    indices = [json.loads((tmp_path / name / index).read_text()) for name in ("whole", "streamed")]
    assert indices[0] == indices[1]
    student = load_model(tmp_path / "streamed")
    for name, tensor in load_model(tmp_path / "whole").state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name


SOURCES = {
    "layers": {"layers": 3},
    "width": {"width": 64, "heads": 8},
    "heads": {"heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_teacher_of_other_sizes_is_refused_in_a_sentence(name, tmp_path):
    folder = write_teacher(tmp_path / "t")
    other = write_teacher(tmp_path / "other", **SOURCES[name])
    layout = load_outline(folder).layout.convert([3], to="mamba2")
    with pytest.raises(ModelError, match=r"the source has \w+ \d+, and the model \d+\."):
        stream(folder, layout, FreshSettings(), tmp_path / "out", source=other)
    assert not (tmp_path / "out").exists()


def test_a_student_goes_on_with_what_it_learned_and_the_attention_of_its_teacher(tmp_path):
    teacher = write_teacher(tmp_path / "t")
    first = load_model(teacher)
    student = convert(first, first.layout.convert([2], to="mamba2"), seed=1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    save_model(student, None, tmp_path / "h1")
    layout = student.layout.convert([0], to="mamba2")
    whole = convert(load_model(tmp_path / "h1"), layout, source=first, seed=9)
    save_model(whole, None, tmp_path / "whole")
    stream(tmp_path / "h1", layout, FreshSettings(seed=9), tmp_path / "h2", source=teacher)
    assert same_files(tmp_path / "whole", tmp_path / "h2")
    with pytest.raises(ModelError, match="layer 2 of the source holds mamba2"):
        back = student.layout.convert([2], to="attention")
        stream(tmp_path / "h1", back, FreshSettings(), tmp_path / "x")


@pytest.mark.parametrize(
    "form",
    [Form(), Form(joint=True, rank=3), Form(codes=("t", "i", "m2", "t")), Form(tied=True)],
    ids=["plain", "joint", "left-out", "tied"],
)
def test_a_published_checkpoint_goes_on_to_more_converted_layers(form, tmp_path):
    folder = make_checkpoint(tmp_path / "h1", form, shards=3)
    model = load_model(folder)
    layout = model.layout.convert([0], to="mamba1")
    options = model.config.mixer_options["mamba1"]
    save_model(convert(model, layout, options=options, seed=7), None, tmp_path / "whole")
    stream(folder, layout, FreshSettings(options=options, seed=7), tmp_path / "streamed")
    assert same_files(tmp_path / "whole", tmp_path / "streamed")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight"):
        folder = write_teacher(tmp_path / "t")
        tensors = load_file(folder / "model.safetensors")
        tensors[name][1, 2] = float("nan")
        save_file(tensors, folder / "model.safetensors")
        layout = load_outline(folder).layout.convert([1], to="mamba2")
        with pytest.raises(ModelError, match=f"{name} holds values that are not finite"):
            stream(folder, layout, FreshSettings(), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_large_weights_are_finite_even_if_their_sum_is_not(tmp_path):
    folder = write_teacher(tmp_path / "t", dtype=torch.float16)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"].fill_(60_000)
    save_file(tensors, folder / "model.safetensors")
    layout = load_outline(folder).layout.convert([1], to="mamba2")
    stream(folder, layout, FreshSettings(), tmp_path / "out")
    assert load_model(tmp_path / "out").model.embed_tokens.weight.min().item() == 60_000


SETTINGS = {
    "no-json": "{",
    "list": "[]",
    "no-number": '{"max_new_tokens": "x", "temperature": "hot"}',
    "negative": '{"max_new_tokens": -3}',
}


@pytest.mark.parametrize("name", SETTINGS)
def test_generation_settings_that_cannot_be_read_are_refused(name, tmp_path):
    folder = write_teacher(tmp_path / "t")
    layout = load_outline(folder).layout.convert([1], to="mamba2")
    (folder / "generation_config.json").write_text(SETTINGS[name])
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read") as caught:
        stream(folder, layout, FreshSettings(), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    folder = write_teacher(tmp_path / "t")
    layout = load_outline(folder).layout.convert([1], to="mamba2")
    words = {f"w{number}": number for number in range(65)}
    core = Tokenizer(WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    with pytest.raises(ModelError, match="the tokenizer has 65 tokens, but the embedding has 64"):
        stream(folder, layout, FreshSettings(), tmp_path / "out")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        stream(folder, layout, FreshSettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dtype_can_be_chosen(tmp_path):
    folder = write_teacher(tmp_path / "t")
    model = load_model(folder, dtype=torch.bfloat16)
    layout = model.layout.convert([1], to="mamba2")
    save_model(convert(model, layout), None, tmp_path / "whole")
    stream(folder, layout, FreshSettings(), tmp_path / "half", dtype=torch.bfloat16)
    assert same_files(tmp_path / "whole", tmp_path / "half")


def test_files_are_as_small_as_asked_for_and_load_as_one_model(tmp_path):
    folder = write_teacher(tmp_path / "t", vocab=256)
    model = load_model(folder)
    layout = model.layout.convert([0, 3], to="mamba2")
    told = []
    stream(
        *(folder, layout, FreshSettings(seed=5), tmp_path / "small"),
        shard_bytes=32_768,
        progress=lambda done, total: told.append((done, total)),
    )
    sizes = [path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 32_768 + 2_000
    assert told[-1][0] == told[-1][1] and len(told) > 20
    # Read again, and once more through many small files of input.
    found = load_model(tmp_path / "small").state_dict()
    for name, tensor in convert(model, layout, seed=5).state_dict().items():
        assert torch.equal(tensor, found[name]), name
    stream(tmp_path / "small", layout, FreshSettings(), tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())


def test_a_folder_can_be_replaced_by_its_own_student(tmp_path):
    folder = write_teacher(tmp_path / "m")
    layout = load_model(folder).layout.convert([1], to="mamba2")
    stream(folder, layout, FreshSettings(), folder)
    assert load_model(folder).layout == layout
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_stops_midway_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = write_teacher(tmp_path / "t")
    layout = load_model(folder).layout.convert([1], to="mamba2")
    before = write_teacher(tmp_path / "out", seed=4)
    kept = {path.name: path.read_bytes() for path in before.iterdir()}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(folder, layout, FreshSettings(), before, progress=stop)
    assert {path.name: path.read_bytes() for path in before.iterdir()} == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t"]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    folder = write_teacher(tmp_path / "t")
    layout = load_model(folder).layout.convert([1], to="mamba2")
    free = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda place: free)
    with pytest.raises(MachineError, match=r"1000 B .*Make room"):
        stream(folder, layout, FreshSettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [("truncated", "model.safetensors"), ("missing", "model.norm.weight"), ("shape", "shape")],
)
def test_a_damaged_folder_is_refused_before_anything_is_written(damage, told, tmp_path):
    folder = write_teacher(tmp_path / "t")
    layout = load_model(folder).layout.convert([1], to="mamba2")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
    if damage == "missing":
        tensors.pop("model.norm.weight")
        save_file(tensors, weights)
    if damage == "shape":
        tensors["model.norm.weight"] = torch.ones(3)
        save_file(tensors, weights)
    with pytest.raises(ModelError, match=told):
        stream(folder, layout, FreshSettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_stays_below_the_bound(tmp_path, monkeypatch):
    """In a process of its own: 1.5 x (largest file in + largest file out) + 500 MB."""
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "surgery.py"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    layers = benchmark["make_teacher"](teacher, 0.3, 0.03)
    cost = benchmark["convert"](teacher, out, layers, 0.03)
    sizes = benchmark["file_sizes"](teacher)
    assert sum(sizes) > 250e6 and len(sizes) > 8
    assert cost.peak_bytes < benchmark["bound"](teacher, out), cost
    assert load_outline(out).layout.converted == tuple(range(1, layers, 2))
