"""The command export: the format that fits, the folder it leaves, and what it says."""

import json
import shutil

import pytest

from hybridize.core.shape import SHIPPED_TEACHER


@pytest.fixture
def run_folder(call, tmp_path):
    """The folder of a run with one student of the shipped teacher."""
    run = tmp_path / "run"
    call("convert", "shipped", "--layers", "2,5", "--out", "run/merge/model")
    (run / "recipe.yaml").write_text("version: 1  # as given\n")
    (run / "status.json").write_text("{}")
    card = "---\nlicense: apache-2.0\n---\n\n# tiny-merge\n\nText.\n\n## Scores\n\nGood.\n\n"
    (run / "merge/model/README.md").write_text(card + "## How to load\n\nOtherwise.\n")
    return run


def test_a_student_of_a_run_is_exported_with_its_card_and_recipe(call, run_folder, tmp_path):
    out, err = call("export", "run/merge/model", "out", "--dtype", "bfloat16")
    assert out == "out\n"
    assert err.startswith(
        "out  stock  GraniteMoeHybridForCausalLM  bfloat16\ntransformers, without"
    )
    assert "8 of 8 continuations of 64 tokens are the same" in err
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "recipe.yaml", "tokenizer.json", "tokenizer_config.json"),
        "verification.json",
    }
    assert (folder / "recipe.yaml").read_text() == "version: 1  # as given\n"
    told = json.loads((folder / "verification.json").read_text())
    assert told["checks"][0]["passed"] and told["checks"][0]["deviation"] < 1e-4
    assert (
        told["checks"][0]["without_hybridize"] and len(set(told["checks"][0]["prompt_tokens"])) > 4
    )
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n---\n\n# tiny-merge\n\nWritten by hybridize")
    assert "## Scores\n\nGood." in card and "Otherwise" not in card and ">= 5.23.0" in card


def test_what_does_not_fit_a_class_is_written_in_our_own(call, tmp_path):
    call("convert", "shipped", "--layers", "1", "--set", "mixer.kind=mamba1", "--out", "h1")
    message = "no class of transformers has layers of mamba1 .*: convert to mamba2, or use"
    _, err = call("export", "h1", "out", "--format", "stock", code=2)
    assert "no class of transformers has layers of mamba1" in err, message
    assert not (tmp_path / "out").exists()
    _, err = call("export", "h1", "out", "--no-verify")
    assert err.startswith("out  hybridize  HybridForCausalLM  float32\nnot checked in transformers")
    assert "Not checked in transformers" in (tmp_path / "out/README.md").read_text()


def test_the_teacher_keeps_its_class(call, tmp_path):
    _, err = call("export", "shipped", "out", "--no-verify")
    assert err.startswith("out  stock  the teacher's own  float32\n")
    written = json.loads((tmp_path / "out/config.json").read_text())
    before = json.loads((SHIPPED_TEACHER / "config.json").read_text())
    assert written == before
    shutil.rmtree(tmp_path / "out")


def test_the_table_is_printed_and_given_as_json(call):
    out, _ = call("ls", "exports")
    assert "GraniteMoeHybridForCausalLM" in out and ">= 5.23.0" in out
    assert "Qwen3_5ForCausalLM" in out and "--no-mtp" in out
    out, _ = call("ls", "exports", "--json")
    assert json.loads(out)["granite"]["teachers"] == ["llama", "mistral", "qwen2", "granite"]
