"""Commands about recipes: new, check, plan, ls, doctor."""

import json

import pytest

from hybridize.core.catalog import KINDS, known_names
from hybridize.core.recipe import load_recipe


def test_new_writes_a_recipe_that_check_accepts(call, teacher, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"text": "a b c"}\n' * 9)
    out, err = call("new", "mine", "--teacher", teacher, "--data", data)
    assert out == "mine.yaml\n"
    assert err == "next: hybridize check mine.yaml\n"
    out, err = call("check", "mine.yaml")
    assert "h6 -> h9" in out
    assert "is sound" in err
    call("new", "mine", "--teacher", teacher, code=2)


def test_new_for_another_teacher_wants_text(call, teacher):
    _, err = call("new", "mine", "--teacher", teacher)
    assert "it trains on traces.jsonl, which is not here" in err
    _, err = call("check", "mine.yaml")
    assert "data traces.jsonl does not exist" in err and "sound but for its data" in err
    _, err = call("new", "tiny2", "--template", "tiny", "--data", "a.jsonl", code=2)
    assert "recipe tiny has data of its own" in err


def test_new_copies_a_shipped_recipe_under_its_own_name(call, teacher):
    call("new", "mine.yaml", "--template", "tiny", "--teacher", teacher)
    recipe = load_recipe("mine.yaml")
    assert (recipe.name, recipe.teacher.model) == ("mine", str(teacher))
    _, err = call("new", "other", "--template", "tny", code=2)
    assert "Did you mean tiny?" in err


def test_a_mistake_is_one_sentence_and_exit_code_2(call, teacher):
    _, err = call("check", "tiny", "--set", "distill.tokens_per_stp=1", code=2)
    assert err.startswith(
        "recipe tiny.yaml, --set distill.tokens_per_stp=1: distill.tokens_per_stp"
    )
    assert "Traceback" not in err
    _, err = call("check", "nowhere.yaml", code=2)
    assert "cannot be read" in err
    setting = f"teacher.model={teacher}"
    _, err = call("check", "tiny", "--set", setting, "--set", "stages.h10.converted=20", code=2)
    assert "stage h10 converts 20 layers, but the teacher has 12" in err


def test_check_resolved_prints_the_origin_of_each_value(call, teacher):
    out, _ = call("check", "tiny", "--set", f"teacher.model={teacher}", "--resolved")
    assert "seed: 17" in out
    assert "# default" in out


def test_plan_prints_text_and_json(call, teacher):
    setting = f"teacher.model={teacher}"
    out, _ = call("plan", "tiny", "--set", setting)
    assert "decided by leave_one_out" in out
    for said in ("24 attention tensors give way", "rows 128:192", "frozen", "GFLOP/s", "sft: "):
        assert said in out
    out, _ = call("plan", "tiny", "--set", setting, "--json")
    assert [stage["name"] for stage in json.loads(out)["stages"]] == ["h6", "h7", "h8", "h10"]


def test_plan_of_one_stage_shows_what_it_trains_and_every_tensor(call, teacher):
    settings = ("--set", f"teacher.model={teacher}", "--set", "distill.train=[mixer]")
    out, _ = call("plan", "tiny", *settings, "--stage", "h7", "--tensors")
    assert out.startswith("h7: 1 more of 12 layers to mamba2")
    assert "h8" not in out
    assert "teacher:model.layers.6.self_attn.q_proj.weight" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["mixers"][0] == rows["mixers"][1]
    assert rows["MLP"][1] == "0"
    out, _ = call("plan", "tiny", *settings, "--stage", "h7", "--json")
    assert json.loads(out)["name"] == "h7"
    _, err = call("plan", "tiny", *settings, "--stage", "h9", code=2)
    assert "no stage 'h9'" in err


@pytest.mark.parametrize("kind", KINDS)
def test_ls_lists_every_name(call, kind):
    out, _ = call("ls", kind)
    assert [line.split()[0] for line in out.splitlines()] == list(known_names(kind))
    out, _ = call("ls", kind, "--json")
    assert list(json.loads(out)) == list(known_names(kind))


def test_ls_of_an_unknown_kind_names_the_known_ones(call):
    _, err = call("ls", "mixer", code=2)
    assert "Did you mean mixers?" in err


def test_doctor_tells_versions_and_the_form_of_each_operator(call):
    out, _ = call("doctor", "--json")
    facts = json.loads(out)
    assert set(facts) == {"versions", "machine", "operators", "engines"}
    assert "self-check passes" in facts["operators"]["ssd"]
    out, _ = call("doctor")
    assert "torch" in out


def test_version(call):
    out, _ = call("--version")
    assert out.startswith("hybridize 0.")
