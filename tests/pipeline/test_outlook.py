"""What the plan says before anything is measured, and once layers are decided."""

import pytest

from hybridize.core.plan import make_plan
from hybridize.core.recipe import load_recipe
from hybridize.core.shape import ModelShape
from hybridize.pipeline.outlook import Outlook
from tests.tiny import as_student, tiny_teacher


def look(family: str, *overrides: str, layers: tuple[int, ...] = ()) -> Outlook:
    teacher = as_student(tiny_teacher(family, layers=12))
    recipe = load_recipe("tiny", ["data.sequence_length=64", *overrides])
    plan = make_plan(recipe, ModelShape.from_config(teacher.config.teacher.to_dict()))
    return Outlook.make(recipe, plan.with_layers("h6", layers) if layers else plan, teacher)


def test_strips_show_what_is_decided():
    lines = look("llama", layers=(1, 3, 5, 7, 9, 11)).text("h7").splitlines()
    assert lines[1].split(maxsplit=1)[1] == "AMAMAMAMAM AM"
    assert lines[2].split(maxsplit=1)[1] == "?M?M?M?M?M ?M  7 M, 5 A"
    assert "not yet measured; decided by replace_one: reverse_kl of h6" in lines[3]


@pytest.mark.parametrize(
    ("family", "init", "dropped"), [("qwen3", "random", 36), ("llama", "random", 24)]
)
def test_what_is_not_read_is_named_as_dropped(family, init, dropped):
    text = look(family, f"mixer.init={init}").text("h6")
    assert f"{dropped} dropped without being read" in text
    assert "dropped  self_attn.q_" in text


def test_the_alignment_is_told_like_the_stages():
    more = ("mixer.init=aligned", "align.tokens=10k", "align.tokens_per_step=128")
    text = look("llama", *more).text("align")
    assert text.startswith("align: a mamba2 for each of 12 layers of the teacher, 10k tokens\n")
    assert "128 tokens an update; they start from attention" in text
    assert "of mixers, gradients and optimiser" in text and "two processor cores" in text
    machine = ("machine.gpu=h100-sxm", "machine.gpus=8")
    assert "one process aligns, and the others wait" in look("llama", *more, *machine).text()
    assert "align:" not in look("llama").text()


def test_a_mixer_of_another_kind_and_patterns_of_names():
    text = look(
        "qwen2",
        "mixer.kind=mamba1",
        "mixer.options.state_size=8",
        "distill.train=[mixer, '*norm*']",
    ).text()
    rows = [line.split() for line in text.splitlines()]
    assert next(row for row in rows if row[:1] == ["norms"])[2] != "0"
    assert "sft: fine-tuning of h7" in text
