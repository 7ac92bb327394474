"""lm-evaluation-harness reads from the own server what it reads in this process."""

import importlib.util
import math

import pytest

TASK = """\
task: likely
custom_dataset: !function hybridize.evaluation.harness_problems.make_add
output_type: loglikelihood
test_split: test
doc_to_text: "{{prompt_text}}"
doc_to_target: "{{completion_text}}"
target_delimiter: " "
metric_list:
  - metric: perplexity
  - metric: acc
num_fewshot: 0
"""


def run(model, folder, **arguments):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    found = simple_evaluate(
        model=model, tasks=["likely"], limit=6, task_manager=manager, bootstrap_iters=0, **arguments
    )
    return [(float(one["resps"][0][0][0]), one["resps"][0][0][1]) for one in
            sorted(found["samples"]["likely"], key=lambda one: one["doc_id"])]  # fmt: skip


@pytest.mark.slow
def test_a_task_of_likelihoods_is_the_same_on_the_server(start, folder, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from hybridize.evaluation.endpoint import Endpoint
    from hybridize.evaluation.harness import make_harness_model
    from hybridize.evaluation.sampling import Sampling
    from hybridize.evaluation.subjects import InProcess
    from hybridize.models.model import load

    (tmp_path / "likely.yaml").write_text(TASK)
    client, inside = start(), InProcess.of(load(folder, name="mixed"))
    served = Endpoint(client.url, inside.tokenizer)
    here, there = (
        run(make_harness_model(subject, batch=4, sampling=Sampling()), tmp_path)
        for subject in (inside, served)
    )
    assert len(here) == 6 and all(math.isfinite(value) and value < -1 for value, _ in here)
    assert [value for value, _ in there] == pytest.approx([value for value, _ in here], abs=1e-3)
    assert [likeliest for _, likeliest in there] == [likeliest for _, likeliest in here]
    if importlib.util.find_spec("tenacity") is None:
        pytest.skip("the harness's own client is not installed: pip install 'lm-eval[api]'")
    arguments = {
        "model": "mixed",
        "base_url": f"{client.url}/v1/completions",
        "tokenizer": str(folder),
        "tokenizer_backend": "huggingface",
        "max_length": 256,
    }
    theirs = run("local-completions", tmp_path, model_args=arguments)
    assert theirs == there
