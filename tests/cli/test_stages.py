"""Commands of one stage, on a teacher of random weights: they hand folders on to each other."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridize.core.importance import Importance
from hybridize.tasks.words import ASSISTANT, BOS, EOS, PAD, THINK, USER, VOCABULARY
from tests.tiny import tiny_teacher

SMALL = ["--set", "data.sequence_length=64"]
STEPS = [*SMALL, "--set", "distill.tokens_per_step=64"]
TEMPLATE = f"{BOS} {USER} {{{{ messages[-1].content }}}} {ASSISTANT} {THINK}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A saved teacher of 2 layers that knows the words of the built-in problems."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    words = {word: number for number, word in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    tiny_teacher(layers=2, vocab=len(words)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def student(call, teacher):
    call("convert", teacher, "--layers", "1", "--teacher", teacher, "--out", "h1")
    return "h1"


def test_convert_shows_both_layouts_and_writes_a_model(call, teacher, tmp_path):
    out, err = call("convert", teacher, "--layers", "1", "--teacher", teacher, "--out", "h1")
    assert out == "h1\n"
    assert err == "before  AA\nafter   AM\n"
    assert json.loads((tmp_path / "h1" / "config.json").read_text())["mixers"] == [
        "attention",
        "mamba2",
    ]
    call("convert", teacher, "--layout", "MA", "--teacher", teacher, "--out", "h0")
    _, err = call("convert", teacher, "--teacher", teacher, "--out", "h1", code=2)
    assert "either --layers or --layout" in err
    _, err = call("convert", teacher, "--layers", "9", "--teacher", teacher, "--out", "x", code=2)
    assert "layer 9 does not exist" in err


def test_conversions_start_from_what_align_wrote(call, teacher, tmp_path):
    steps = [*SMALL, "--set", "align.tokens=128", "--set", "align.tokens_per_step=64"]
    out, err = call("align", teacher, "--out", "aligned", "--layers", "1", *steps)
    assert out == "aligned\n"
    assert "mamba2, aligned: distance" in err
    call("convert", teacher, "--layers", "1", "--out", "h1", "--aligned", "aligned")
    aligned = load_file(tmp_path / "aligned" / "layer-01.safetensors")
    student = load_file(tmp_path / "h1" / "model.safetensors")
    assert all(torch.equal(student[name], tensor) for name, tensor in aligned.items())
    _, err = call("convert", teacher, "--layers", "0", "--out", "x", "--aligned", "aligned", code=2)
    assert "holds no mixer for layer 0, only for 1" in err
    overrides = ["--set", "mixer.init=aligned", "--set", "align.tokens=8192"]
    _, err = call("convert", teacher, "--layers", "1", "--out", "x", *overrides, code=2)
    assert "Name the folder of the mixers with --aligned" in err


def test_a_teacher_converts_itself_in_the_precision_and_file_sizes_it_has(call, teacher, tmp_path):
    call("convert", teacher, "--layers", "0", "--out", "h1", "--shard-size", "16KiB")
    assert len(list((tmp_path / "h1").glob("*.safetensors"))) > 2
    out, _ = call("compare", teacher, "h1", "--json")
    changed = json.loads(out)["tensors"]
    assert changed and all("layers.0." in entry for entry in changed)


def test_convert_calibrates_where_the_recipe_says_so(call, teacher, tmp_path):
    common = ["--layers", "1", "--teacher", teacher]
    call("convert", teacher, *common, "--out", "plain")
    call("convert", teacher, *common, "--out", "fitted", "--set", "mixer.calibrate=1k", *SMALL)
    out, _ = call("compare", "plain", "fitted", "--json")
    names = {entry.rpartition("mixer.")[2] for entry in json.loads(out)["tensors"]}
    assert names == {"in_proj.weight: differs", "out_proj.weight: differs"}


def test_importance_ranks_the_layers(call, teacher, tmp_path):
    method = ["--set", "importance.leave_one_out.tokens=64"]
    out, _ = call("importance", teacher, "--teacher", teacher, "--out", "i.json", *SMALL, *method)
    assert out.startswith("leave_one_out (kl) of teacher  AA")
    assert len(Importance.load(tmp_path / "i.json").scores) == 2


def test_distill_sft_and_merge_hand_models_on(call, teacher, student):
    common = ["--tokens", "128", *STEPS]
    out, err = call("distill", student, "--teacher", teacher, "--out", "d1", *common)
    assert out == "d1\n"
    assert "step 2/2" in err
    call("sft", "d1", "--out", "s1", *common)
    out, _ = call("merge", "d1", "s1", "--weights", "1,0", "--out", "merged")
    out, _ = call("compare", "d1", "merged", "--json")
    assert json.loads(out)["tensors"] == []
    _, err = call("merge", "d1", teacher, "--out", "x", code=2)
    assert "different layouts" in err


def test_a_budget_below_one_step_is_refused(call, teacher, student):
    arguments = ["--teacher", teacher, "--tokens", "32", "--out", "d1", *STEPS]
    _, err = call("distill", student, *arguments, code=2)
    assert "less than one step of 64" in err


def test_eval_and_bench_compare_models(call, teacher, student, tmp_path):
    out, _ = call("eval", teacher, student, "--suite", "recall", "--limit", "1", "--json")
    assert [scores["model"] for scores in json.loads(out)] == ["teacher", "h1"]
    _, err = call("eval", teacher, "--suite", "recal", code=2)
    assert "Did you mean recall?" in err
    arguments = ["--prompt-tokens", "8,16", "--output-tokens", "2", "--out", "speed", "--json"]
    out, _ = call("bench", teacher, student, *arguments)
    rows = json.loads(out)["models"][1]["rows"]
    assert [row["context_tokens"] for row in rows] == [8, 16]
    assert (tmp_path / "speed" / "bench.json").exists()


def test_chat_answers_a_line_and_tells_its_speed(teacher, tmp_path):
    from typer.testing import CliRunner

    from hybridize.cli.app import app

    arguments = ["chat", str(teacher), "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, arguments, input="add 1 + 2\n")
    assert done.exit_code == 0, done.output
    assert "tok/s" in done.stderr
    assert done.stdout.strip()
