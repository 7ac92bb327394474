"""A recipe is strict, names the line of each mistake, and resolves to itself."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.core.catalog import known_names
from hybridize.core.errors import RecipeError
from hybridize.core.recipe import Recipe, load_recipe
from hybridize.core.template import render_template

RECIPE = """\
version: 1
teacher: {model: ./teacher}
importance:
  - {method: leave_one_out}
  - {method: replace_one, lr: 1e-3}
stages:
  - {name: h4, converted: 4, tokens: 300M, rank_by: leave_one_out}
  - name: h8
    converted: 8
    tokens: 1M
    rank_by: replace_one
    optimizer: {lr: 5e-4}
distill:
  optimizer: {lr: 1e-3, weight_decay: 0.1}
  schedule: {warmup: 2%}
  tokens_per_step: 512k
sft: {tokens: 1M, data: {path: sft.jsonl, prompt: q, completion: a}}
merge: {models: [sft, h8]}
"""


@pytest.fixture
def write(tmp_path):
    def write_recipe(text=RECIPE, *replacements):
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "h12.yaml"
        path.write_text(text)
        return path

    return write_recipe


def test_values_are_read_and_filled_in_from_other_sections(write):
    recipe = load_recipe(write())
    first, second = recipe.stages
    assert (recipe.name, first.tokens, first.start_from, second.start_from) == (
        "h12",
        300_000_000,
        "teacher",
        "h4",
    )
    assert (first.optimizer.lr, second.optimizer.lr) == (1e-3, 5e-4)
    assert second.optimizer.weight_decay == 0.1
    assert second.schedule.warmup == 0.02
    assert (recipe.sft.start_from, recipe.sft.optimizer.lr) == ("h8", 1e-3)
    assert recipe.merge.weights == (0.5, 0.5)
    assert recipe.data.heldout == recipe.data.train
    assert recipe.evaluate is None


MISTAKES = [
    (
        "tokens_per_step: 512k",
        "tokens_per_stp: 512k",
        16,
        "distill.tokens_per_stp is not a setting. Did you mean tokens_per_step? "
        "Settings of distill: ",
    ),
    ("tokens: 300M", "tokens: 300X", 7, "stages.h4.tokens: '300X' is not a number of tokens"),
    ("    tokens: 1M\n", "", 8, "stages.h8.tokens is missing. Add it: budget, in tokens"),
    ("converted: 8", "converted: eight", 9, "converted is 'eight', but must be a whole number"),
    ("converted: 8", "converted: -1", 9, "converted is -1, but must be more than 0"),
    ("warmup: 2%", "warmup: 200%", 15, "distill.schedule.warmup: '200%' is not a share"),
    ("warmup: 2%", "name: linear", 15, "name 'linear' is not known. Known: constant, cosine, wsd"),
    ("weight_decay: 0.1", "name: adam", 14, "Did you mean adamw? Known: adamw, muon."),
    ("method: replace_one,", "method: replace_on,", 5, "Did you mean replace_one?"),
    ("method: replace_one, ", "", 5, "importance.1.method is missing. Known: leave_one_out"),
    ("lr: 1e-3}\nstages", "lr: fast}\nstages", 5, "lr is 'fast', but must be a number"),
    ("lr: 1e-3}\nstages", "lr: .inf}\nstages", 5, "lr is inf, but must be a finite number"),
    ("model: ./teacher", "model: off", 2, 'YAML reads off as false. Write "off" in quotes.'),
    ("model: ./teacher", "model: ", 2, "teacher.model is empty"),
    ("model: ./teacher", "model: t, revision: None", 2, "YAML reads None as a word. Write null."),
    ("tokens_per_step: 512k", "train: mixer", 16, "train is 'mixer', but must be a list"),
    ("tokens_per_step: 512k", "loss: {rkl: yes}", 16, 'YAML reads yes as true. Write "yes"'),
    ("tokens_per_step: 512k", "grad_clip: 1:30", 16, "grad_clip is '1:30', but must be a number"),
    ("path: sft.jsonl, ", "kind: jsonl, ", 17, "sft.data.path is missing. Add it: the file"),
    ("prompt: q, ", "", 17, "sft.data gives completion. Give one form"),
    ("merge: {", "merge: {weights: [1], ", 18, "merge has 2 models and the weights [1.0]"),
    ("[sft, h8]", "[sft, h9]", 18, "merge names 'h9', which is not made"),
    ("[sft, h8]", "[sft, h4]", 18, "sft has 8, h4 has 4 converted layers"),
    ("rank_by: leave_one_out", "rank_by: null", 7, "does not say how to choose layers"),
    ("  - {method: leave_one_out}\n", "", 6, "ranks by leave_one_out, which importance does not"),
    ("name: h8", "name: h4", 8, "the stage name h4 is taken"),
    ("name: h8", "name: sft", 8, "the stage name sft is reserved"),
    ("name: h8", "name: a/b", 8, "letters, digits"),
    ("name: h8", "name: h8\n    start_from: h9", 9, "starts from 'h9', which is no earlier stage"),
    ("converted: 8", "converted: 3", 9, "stage h8 converts 3 layers in all, but h4 has 4"),
    ("tokens: 1M\n", "tokens: 100k\n", 10, "less than one step of 512000"),
    ("512k", "511", 16, "takes 511 tokens a step, less than one row of 512"),
    ("warmup: 2%", "warmup: 90%", 15, "for more than 100%"),
    ("distill:\n", "seed: 1\nseed: 2\ndistill:\n", 14, "seed is given twice (first on line 13)"),
    ("distill:\n", "distil:\n", 13, "distil is not a setting. Did you mean distill? Sections: "),
    ("version: 1", "version: 2", 1, "version 2 is not known. Known: 1."),
    ("version: 1", "version: 1\nbase: &b {a: 1}\nother: *b", 3, "is an alias"),
    ("version: 1", "version: 1\nname: !!python/object:os.system x", 2, "has the tag"),
    ("version: 1", "version: 1\ndata: {train: {kind: tasks, path: x}}", 2, "path is not a setting"),
    ("version: 1", "version: 1\nmixer: {init: aligned}", 2, "the recipe has no section align"),
    ("version: 1", "version: 1\nalign: {tokens: 400}", 2, "400 tokens, less than one step of 512"),
    ("version: 1", "version: 1\nalign: {token: 1M}", 2, "align.token is not a setting. Did you"),
    ("version: 1", "version: 1\ndata: {train: text}", 2, "must be a mapping of settings"),
    ("version: 1", "version: 1\nmixer: {options: {expand: [1]}}", 2, "mixer.options.expand is [1]"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_is_named_with_its_line(write, old, new, line, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(RECIPE, (old, new)))
    text = str(caught.value)
    assert text.startswith(f"recipe h12.yaml, line {line}: "), text
    assert message in text, text


def test_all_mistakes_are_told_at_once(write):
    path = write(RECIPE, ("512k", "5x"), ("converted: 8", "converted: x"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert re.findall(r"line (\d+)", str(caught.value)) == ["9", "16"]


def test_text_that_is_not_yaml_is_named_with_its_line(write):
    with pytest.raises(RecipeError, match=r"recipe h12\.yaml, line 2: not YAML"):
        load_recipe(write("version: 1\nteacher: {model: [}\n"))
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load_recipe(write(""))


def test_a_missing_file_is_answered_with_the_shipped_recipes():
    with pytest.raises(RecipeError, match=r"nowhere\.yaml cannot be read .* tiny, tiny-full"):
        load_recipe("nowhere.yaml")


def test_overrides_reach_list_entries_by_name_and_index(write):
    overrides = [
        "stages.h8.tokens=2M",
        "stages.0.converted=5",
        "importance.replace_one.steps=3",
        "distill.optimizer.lr=2e-4",
        "evaluate.every_stage=true",
        "distill.loss={reverse_kl: 0.5, forward_kl: 0.5}",
        "merge.models.1=h8",
    ]
    recipe = load_recipe(write(), overrides)
    assert recipe.stage("h8").tokens == 2_000_000
    assert recipe.stage("h4").converted == 5
    assert recipe.measurement("replace_one").steps == 3
    assert recipe.stages[0].optimizer.lr == 2e-4
    assert recipe.evaluate.every_stage is True
    assert recipe.stages[1].loss == {"reverse_kl": 0.5, "forward_kl": 0.5}
    assert "# --set stages.h8.tokens=2M" in recipe.resolved()


def test_a_weight_of_a_loss_may_change_and_differ_by_layer(write):
    ramp = "{reverse_kl: 1, cross_entropy: {start: 1.0, end: 0}, hidden_states: {layers: {3: 2}}}"
    recipe = load_recipe(write(), [f"distill.loss={ramp}", "stages.h8.loss={js: 0.5}"])
    loss = recipe.stage("h4").loss
    assert loss["reverse_kl"] == 1.0
    assert [loss["cross_entropy"].at(share) for share in (0, 0.25, 1)] == [1.0, 0.75, 0.0]
    assert loss["hidden_states"].at(0.5) == 1.0 and loss["hidden_states"].layers == {"3": 2.0}
    assert recipe.stage("h8").loss == {"js": 0.5}
    assert load_recipe(write(recipe.resolved())) == recipe
    assert recipe.replace({"distill.loss": loss}).distill.loss == loss


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("0", "distill.loss.js: a weight of 0 must be more than 0. Write a number above 0, or"),
        ("much", "distill.loss.js: 'much' is no weight. Write a number above 0, or settings such"),
        (".inf", "distill.loss.js: a weight of inf must be more than 0"),
        ("{stop: 1}", "distill.loss.js: stop is not a setting of a weight. It has start, end, la"),
        ("{start: -1}", "distill.loss.js: start is -1, but must be greater than or equal to 0"),
        ("{end: soon}", "distill.loss.js: end is 'soon', but must be a valid number"),
        ("{layers: {first: 1}}", "'first' is not the number of a layer, counted from 0"),
        ("{layers: {0: 1}}", "js is not a loss between layers: remove its layers."),
        ("{layers: {0: 0}}", "distill.loss.js: layers.0 is 0, but must be greater than 0"),
    ],
)
def test_a_weight_that_cannot_be_is_named(write, weight, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), [f"distill.loss={{js: {weight}}}"])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.lr", "write it as key=value"),
        ("stages.h9.tokens=1M", "stages has no entry 'h9'. Its entries: h4, h8."),
        ("stages.7.tokens=1M", "no entry '7'"),
        ("version.a=1", "version is 1 and holds no 'a'"),
        ("distill.temprature=2", "recipe h12.yaml, --set distill.temprature=2: distill.temprature"),
        ("distill.loss={", "not YAML"),
    ],
)
def test_a_wrong_override_is_named(write, override, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), [override])
    assert message in str(caught.value)


def test_resolved_tells_the_origin_of_each_value(write):
    text = load_recipe(write(), ["seed=3"]).resolved()
    lines = {line.partition("#")[0].strip(): line.partition("# ")[2] for line in text.splitlines()}
    assert lines["seed: 3"] == "--set seed=3"
    assert lines["tokens_per_step: 512000"] in ("line 16", "distill")
    assert lines["temperature: 1.0"] == "default"
    assert lines["lr: 0.0005"] == "line 12"


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-8, 10, allow_nan=False),
    warmup=st.floats(0, 0.5),
    tokens=st.integers(1, 10**6).map(lambda n: n * 512_000),
    seed=st.integers(0, 2**31),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True),
    train=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3),
)
def test_resolving_is_idempotent(tmp_path_factory, lr, warmup, tokens, seed, name, train):
    if "None" in train:
        return
    recipe = Recipe.from_values(
        {
            "version": 1,
            "name": name,
            "seed": seed,
            "teacher": {"model": "shipped"},
            "importance": [{"method": "leave_one_out"}],
            "stages": [
                {"name": "a", "converted": 1, "tokens": tokens, "optimizer": {"lr": lr}},
                {"name": "b", "converted": 2, "tokens": tokens},
            ],
            "distill": {"schedule": {"warmup": warmup}, "train": train},
            "sft": {"tokens": tokens},
        }
    )
    path = tmp_path_factory.mktemp("resolved") / "r.yaml"
    path.write_text(recipe.resolved(), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    values = [line.partition("  #")[0] for line in recipe.resolved().splitlines()]
    assert [line.partition("  #")[0] for line in again.resolved().splitlines()] == values


def test_replace_makes_a_checked_variation_and_leaves_the_recipe(write):
    recipe = load_recipe(write())
    longer = recipe.replace({"stages.h8.tokens": "600M", "distill.optimizer.lr": 1e-4})
    assert (longer.stages[1].tokens, longer.stages[0].optimizer.lr) == (600_000_000, 1e-4)
    assert recipe.stages[1].tokens == 1_000_000
    assert longer != recipe
    with pytest.raises(RecipeError, match=r"replace stages\.h8\.tokens: .*less than one step"):
        recipe.replace({"stages.h8.tokens": 1})


def test_lines_are_found_by_dotted_path(write):
    recipe = load_recipe(write())
    assert recipe.get_line("stages.h8.tokens") == recipe.get_line("stages.1.tokens") == 10
    assert recipe.get_line("distill.temperature") is None
    assert str(recipe.error("stages.h8.converted", "no")) == "recipe h12.yaml, line 9: no"


@pytest.mark.parametrize("name", known_names("recipes"))
def test_shipped_recipes_load_by_name(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize("num_layers", [2, 3, 12, 80])
def test_the_template_is_a_recipe(write, num_layers):
    text = render_template(name="new", teacher="./models/teacher", num_layers=num_layers)
    recipe = load_recipe(write(text))
    assert recipe.teacher.model == "./models/teacher"
    assert recipe.stages[-1].converted <= num_layers
    assert "# temperature: 1.0" in text
    assert (recipe.data.train.kind, recipe.evaluate.suite) == ("tasks", ("tasks",))


def test_a_template_may_name_its_text(write):
    text = render_template(name="new", teacher="./t", num_layers=4, data="data/*.jsonl")
    recipe = load_recipe(write(text))
    assert recipe.data.train.path == "data/*.jsonl"
    assert recipe.evaluate.suite == ("agreement",)


def test_an_unknown_mixer_is_refused_and_a_plugin_is_not(write):
    with pytest.raises(
        RecipeError, match=r"'mamba3' is not one of the mixers\. Did you mean mamba"
    ):
        load_recipe(write(), ["mixer.kind=mamba3"])
    assert load_recipe(write(), ["mixer.kind='a.b:C'"]).mixer.kind == "a.b:C"


@pytest.mark.parametrize("text", ["é", "a: b", "\x85", "\u2028", "#x", " x", "1e-4", "~", "yes"])
def test_any_text_survives_resolving(write, text):
    recipe = load_recipe(write()).replace({"teacher.model": text, "distill.train": [text]})
    again = load_recipe(write(recipe.resolved()))
    assert (again.teacher.model, again.distill.train) == (text, (text,))
