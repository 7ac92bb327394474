"""The recipe of the page on one's own teacher runs, on a Qwen 3 small enough for it."""

import json
import re
from pathlib import Path

import pytest

from hybridize.core.artifacts import read_json
from hybridize.core.recipe import load_recipe
from hybridize.pipeline import run_recipe
from hybridize.report import verdict
from tests.tiny import tiny_teacher
from tests.training.chats import FORGETFUL, byte_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "own-teacher.md").read_text(encoding="utf-8")
SMALL = (
    *("importance.leave_one_out.tokens=64", "importance.replace_one.tokens=64"),
    *("importance.replace_one.steps=1", "importance.replace_one.tokens_per_step=128"),
    *("stages.h14.converted=1", "stages.h14.tokens=256"),
    *("stages.h20.converted=2", "stages.h20.tokens=256", "sft.tokens=128"),
    *("distill.tokens_per_step=128", "distill.checkpoint_every=128", "data.sequence_length=64"),
    *("data.heldout_share=20%", "bench.context_tokens=[8]", "bench.output_tokens=2"),
)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The page's recipe, in a folder with what it names."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer(FORGETFUL)
    tiny_teacher("qwen3", vocab=len(tokenizer)).save_pretrained("qwen3")
    tokenizer.save_pretrained("qwen3")
    (chat,) = re.findall(r"^```json\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    chats = [json.loads(chat) for _ in range(40)]
    for number, one in enumerate(chats):
        one["messages"][0]["content"] = f"{number} + 30?"
    Path("traces.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in chats))
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    Path("qwen.yaml").write_text(text)
    return Path("qwen.yaml")


def test_the_recipe_runs_to_the_report_and_an_export(recipe):
    assert load_recipe(recipe).stages[-1].converted == 20
    run_recipe(recipe, "run", overrides=SMALL, device="cpu")
    assert verdict("run").startswith("2 of 4 layers converted: the likeliest next token")
    agreed = read_json("run/eval/agreement/merge.json")
    assert agreed["text"]["split"] == "heldout" and agreed["documents"] > 1
    assert read_json("run/eval/diagnosis/h14.json")["text"] == agreed["text"]
    exported = read_json("run/export/stock/config.json")
    assert exported["architectures"] == ["Qwen3_5ForCausalLM"]
