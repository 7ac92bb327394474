"""Every command on a published Apriel-H1 checkpoint, and further conversion of one."""

import json

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from hybridize.cli.app import app
from hybridize.core.importance import Importance
from hybridize.tasks.words import BOS, EOS, PAD, VOCABULARY
from tests.models.apriel import Form, make_checkpoint

SMALL = ["--set", "data.sequence_length=64"]
STEPS = [*SMALL, "--set", "distill.tokens_per_step=64"]
FORM = Form(codes=("t", "m2", "t"), vocabulary=len(VOCABULARY), joint=True, rank=3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint of 3 layers, one of them converted, without a tokenizer."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "plain", FORM)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The same with a tokenizer that knows the words of the built-in problems."""
    folder = make_checkpoint(tmp_path_factory.mktemp("models") / "published", FORM)
    words = {word: number for number, word in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def student(call, published):
    """The checkpoint with one more layer converted."""
    arguments = ["--layers", "2", "--teacher", published, "--set", "mixer.kind=mamba1"]
    _, err = call("convert", published, *arguments, "--out", "h2")
    assert err == "before  AmA\nafter   Amm\n"
    return "h2"


def test_it_is_asked_measured_and_timed(call, published):
    out, _ = call("eval", published, "--suite", "recall", "--limit", "1", "--json")
    assert json.loads(out)[0]["layout"] == "AmA"
    method = ["--set", "importance.leave_one_out.tokens=64"]
    call("importance", published, "--teacher", published, "--out", "i.json", *SMALL, *method)
    assert len(Importance.load("i.json").scores) == 3
    out, _ = call("bench", published, "--prompt-tokens", "8", "--output-tokens", "2", "--json")
    assert json.loads(out)["models"][0]["rows"][0]["context_tokens"] == 8
    done = CliRunner().invoke(app, ["chat", str(published), "--max-new-tokens", "3"], input="1 2\n")
    assert done.exit_code == 0 and "AmA" in done.stderr and "tok/s" in done.stderr


def test_it_is_distilled_further_and_written_back(call, published, student, tmp_path):
    config = json.loads((tmp_path / student / "config.json").read_text())
    assert config["mixer_options"]["mamba1"]["dt_bias"] == "twice"
    arguments = ["--teacher", published, "--tokens", "128", *STEPS, "--out", "d2"]
    _, err = call("distill", student, *arguments)
    assert "step 2/2" in err
    out, _ = call("export", "d2", "back", "--format", "apriel-h1", "--no-verify")
    assert out == "back\n"
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["hybrid_block_layout"] == ["t", "m2", "m2"] and config["ssm_cfg"]["dt_rank"] == 3
    call("export", published, "same", "--format", "apriel-h1", "--no-verify")
    out, _ = call("compare", published, "same", "--json")
    assert json.loads(out)["tensors"] == []
    _, err = call("export", published, "x", "--format", "apriel", code=2)
    assert "Did you mean apriel-h1?" in err
    out, _ = call("ls", "formats")
    assert "\napriel-h1 " in out


def test_layers_converted_before_keep_their_weights(published, student, tmp_path):
    before = load_file(published / "model.safetensors")
    after = load_file(tmp_path / student / "model.safetensors")
    name = "model.layers.1.mixer.in_proj.weight"
    step = "model.layers.1.mixer.dt_in_proj.weight"
    assert before[name][:-3].equal(after[name]) and before[name][-3:].equal(after[step])
    values = "model.layers.2.self_attn.v_proj.weight"
    assert before[values].equal(after[name.replace("1", "2")][32:48])


def test_it_is_planned_as_the_hybrid_it_is(call, published, plain):
    def recipe(teacher, converted):
        text = [
            "version: 1",
            f"teacher: {{model: {teacher}}}",
            "mixer: {kind: mamba1}",
            "data: {sequence_length: 64}",
            "importance: [{method: leave_one_out, tokens: 1k}]",
            f"stages: [{{name: h, converted: {converted}, tokens: 1M, rank_by: leave_one_out}}]",
        ]
        with open("recipe.yaml", "w") as file:
            file.write("\n".join(text))
        return "recipe.yaml"

    out, _ = call("check", recipe(plain, 2))
    assert "AmA" in out
    out, _ = call("plan", recipe(published, 2), "--json")
    plan = json.loads(out)
    assert plan["teacher"]["mixers"] == ["attention", "mamba1", "attention"]
    assert plan["teacher"]["mixer_options"]["mamba1"]["step_rank"] == 3
    small = ["tokens=64", "tokens_per_step=64"]
    sets = [f"--set=distill.{value}" for value in small[1:]] + [f"--set=stages.h.{small[0]}"]
    call("run", recipe(published, 2), "--out", "run", *sets)
    with open("run/stages/01-h/result.json") as file:
        assert json.load(file)["values"]["layout"] in ("Amm", "mmA")
    _, err = call("check", recipe(plain, 1), code=2)
    assert "the teacher has 1 already. Set converted to more than 1" in err


def test_a_command_that_needs_words_says_so(call, plain):
    call("bench", plain, "--prompt-tokens", "8", "--output-tokens", "2", "--json")
    call("export", plain, "same", "--format", "apriel-h1")
    for arguments in (
        ["eval", plain, "--suite", "recall", "--limit", "1"],
        ["importance", plain, "--teacher", plain, *SMALL],
        ["distill", plain, "--teacher", plain, "--tokens", "128", *STEPS, "--out", "d"],
        ["chat", plain],
    ):
        _, err = call(*arguments, code=2)
        assert "has no tokenizer" in err
