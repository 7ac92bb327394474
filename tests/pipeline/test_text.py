"""A street whose text lies in files: kept tokens, a held-out part, blends, and changed files."""

import json

import pytest

from hybridize import tasks
from hybridize.core.artifacts import read_json, read_result
from hybridize.core.errors import RecipeError, RunError
from hybridize.core.recipe import Recipe, load_recipe
from hybridize.core.suites import tell_evaluation
from hybridize.pipeline import open_street
from hybridize.pipeline.observer import Observer
from hybridize.pipeline.translate import make_source
from hybridize.training.blend import BlendRows
from tests.pipeline.small import run
from tests.tiny_tasks import save_task_teacher
from tests.training.tiny import WordTokenizer

RECIPE = """\
version: 1
name: text
teacher: {model: TEACHER}
data:
  train:
    sources:
      - {path: DATA, prompt: question, completion: answer}
      - {kind: tasks, mix: {sort: 1}}
    shares: [75%, 0.25]
  heldout_share: 20%
  sequence_length: 64
importance:
  - {method: leave_one_out, metric: kl, scope: attention, tokens: 256}
distill: {tokens_per_step: 128, checkpoint_every: 128}
stages:
  - {name: h1, converted: 1, tokens: 512}
sft: {tokens: 256, data: {path: DATA, prompt: question, completion: answer}}
"""


class Listener(Observer):
    def __init__(self):
        self.said = []

    def node_said(self, node, text):
        self.said += [text] if node == "data" else []


@pytest.fixture
def data(tmp_path):
    problems = [tasks.make("add", seed=1, index=n) for n in range(60)]
    lines = [
        {"question": problem.prompt_text, "answer": f" {problem.completion_text}"}
        for problem in problems
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def recipe(tmp_path, data):
    teacher = save_task_teacher(tmp_path / "teacher")
    path = tmp_path / "text.yaml"
    path.write_text(RECIPE.replace("TEACHER", str(teacher)).replace("DATA", str(data)))
    return path


def test_a_run_keeps_its_tokens_says_what_it_holds_out_and_sees_a_changed_file(
    recipe, data, tmp_path
):
    out, listener = tmp_path / "run", Listener()
    from hybridize.pipeline import run_recipe

    run_recipe(recipe, out, device="cpu", observer=listener)
    assert read_result(out / "stages" / "01-h1").values["heldout"]["reverse_kl"] > 0
    stores = list((out / "tokens").iterdir())
    assert len(stores) == 1, "train, held-out part and fine-tuning share one store"
    assert read_json(stores[0] / "store.json")["counts"]["documents"] == 60
    said = "\n".join(listener.said)
    assert "75.0% " in said and "of 60 documents (train, 20% of the prompts held out)" in said
    assert "(heldout, 20%" in said and "tasks: problems with traces, heldout" in said
    assert load_recipe(out / "recipe.resolved.yaml") == load_recipe(recipe)

    with data.open("a") as file:
        file.write('{"question": "add : 1 + 1 ?", "answer": " 2"}\n')
    with pytest.raises(RunError, match=r"(?s)is stale.*sha256: \w+ -> \w+"):
        run(recipe, out)


def test_what_reads_text_reads_the_held_out_part_of_it(recipe, data, tmp_path):
    asked = ["evaluate.suite=agreement", "evaluate.diagnose=true", "evaluate.limits={agreement: 7}"]
    asked += ["sft=null", f"data.train={{path: {data}, prompt: question, completion: answer}}"]
    run(recipe, tmp_path / "run", *asked)
    agreed = read_json(tmp_path / "run/eval/agreement/h1.json")
    looked = read_json(tmp_path / "run/eval/diagnosis/h1.json")
    assert agreed["documents"] == 7 and agreed["text"]["split"] == "heldout"
    assert looked["text"] == agreed["text"]
    loaded = load_recipe(recipe, asked)
    facts = "\n".join(tell_evaluation(loaded))
    assert "agreement, 7 documents of held-out text: h1 beside teacher" in facts
    assert "layer by layer on held-out text" in facts
    with data.open("a") as file:
        file.write('{"question": "add : 1 + 1 ?", "answer": " 2"}\n')
    states = open_street(load_recipe(recipe, asked), tmp_path / "run").states()
    assert states["eval/agreement/h1"].kind == states["eval/diagnosis/h1"].kind == "stale"


def test_a_cache_of_ones_own_changes_no_result(recipe, tmp_path):
    cache = tmp_path / "cache"
    run(recipe, tmp_path / "one", until="h1")
    run(recipe, tmp_path / "two", f"data.cache={cache}", until="h1")
    assert not (tmp_path / "two" / "tokens").exists() and len(list(cache.iterdir())) == 1
    one, two = (tmp_path / name / "stages" / "01-h1" for name in ("one", "two"))
    weights = "model/model.safetensors"
    assert (one / weights).read_bytes() == (two / weights).read_bytes()
    assert run(recipe, tmp_path / "one", f"data.cache={cache}", until="h1") == []


def make(data, **section):
    values = {"version": 1, "teacher": {"model": "shipped"}, "data": section}
    return Recipe.from_values(values)


def test_fine_tuning_on_the_same_prompts_keeps_off_the_held_out_ones(data):
    source = {"path": str(data), "prompt": "question", "completion": "answer"}
    recipe = make(data, train=source, heldout_share="30%", sequence_length=64)
    train = make_source(recipe.data.train, recipe, WordTokenizer())
    heldout = make_source(recipe.data.heldout, recipe, WordTokenizer(), heldout=True)
    assert train.num_documents + heldout.num_documents == 60
    chosen = [set(rows.store.groups_D[rows._choose()].tolist()) for rows in (train, heldout)]
    assert not chosen[0] & chosen[1]


def test_text_of_its_own_is_held_out_whole(data):
    recipe = make(data, heldout={"path": str(data), "prompt": "question", "completion": "answer"})
    assert recipe.data.heldout_share is None
    rows = make_source(recipe.data.heldout, recipe, WordTokenizer(), heldout=True)
    assert rows.num_documents == 60


def test_plain_text_for_a_reasoning_teacher_is_warned_of_once(data, caplog):
    recipe = make(data, train={"kind": "tasks", "style": "text"}, sequence_length=512)
    make_source(recipe.data.train, recipe, WordTokenizer())
    make_source(recipe.data.heldout, recipe, WordTokenizer(), heldout=True)
    assert caplog.text.count("this text shows no reasoning") == 1
    caplog.clear()
    both = {
        "sources": [{"kind": "tasks", "style": "text"}, {"kind": "tasks"}],
        "shares": [0.5, 0.5],
    }
    recipe = make(data, train=both)
    assert isinstance(make_source(recipe.data.train, recipe, WordTokenizer()), BlendRows)
    assert not caplog.records


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": {"path": "a"}, "heldout": {"path": "b"}, "heldout_share": "2%"}, "names text"),
        ({"train": {"path": "a"}, "heldout_share": 1}, "leaves nothing to train or to measure"),
        ({"train": {"sources": [{}, {}], "shares": [0.5, 0.6]}}, "together they are 1"),
        (
            {"train": {"sources": [{}, {"path": "a", "prompt": "q"}], "shares": [0.5, 0.5]}},
            "sources.1 gives prompt. Give one form",
        ),
        (
            {"train": {"dataset": "a/b", "long_documents": "cut"}},
            "'cut' is not known. Known: split",
        ),
        ({"train": {"path": "a.parquet", "split": "x"}}, "split is not a setting"),
        ({"train": {"kind": "web"}}, "train.kind 'web' is not known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_a_source_is_named(data, section, message):
    with pytest.raises(RecipeError) as caught:
        make(data, **section)
    assert message in str(caught.value)


def test_a_file_that_is_missing_is_said_before_anything_runs(recipe, data, tmp_path):
    data.unlink()
    with pytest.raises(RunError, match=r"traces\.jsonl does not exist, seen from"):
        open_street(load_recipe(recipe), tmp_path / "run")
