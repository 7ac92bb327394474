"""The evaluations of a run: one model and one suite a node, or one model layer by layer."""

from typing import TYPE_CHECKING, Any

from hybridize.core.artifacts import read_result
from hybridize.core.suites import COMPARING, HARNESS, has_own_text
from hybridize.stages import agreement, diagnose, evaluate, harness
from hybridize.training.data import TokenSource

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions
    from hybridize.pipeline.street import Node

Values = dict[str, Any]


def evaluate_node(actions: "Actions", node: "Node") -> Values:
    """Do what a node `eval/...` stands for; return the values of its `result.json`."""
    name, asked = node.name.rpartition("/")[2], dict(node.settings["evaluate"])
    if asked.get("diagnose"):
        found = diagnose.run(
            actions.model(name),
            diagnose.DiagnoseSettings(),
            node.folder,
            teacher=actions.teacher,
            text=_own_text(actions),
        )
        actions.observer.node_said(node.name, str(found))
        return {"findings": found.findings}
    limit = asked.pop("limit", None)
    if asked["suite"] in COMPARING:
        return _compare(actions, node, name, limit)
    if asked["suite"].startswith(HARNESS):
        return _ask_harness(actions, node, name, asked, limit)
    if limit is not None:
        asked["problems"] = limit
    return _ask(actions, node, name, evaluate.EvaluateSettings(**asked))


def tokens_of(actions: "Actions", name: str) -> int:
    """Return the tokens a model was trained on, all stages since the teacher together."""
    if name == "teacher":
        return 0
    result = read_result(actions.home(name))
    assert result is not None, f"{name} runs before what needs it"
    return int(result.values["cumulative_tokens"])


def _ask(
    actions: "Actions", node: "Node", name: str, settings: evaluate.EvaluateSettings
) -> Values:
    """Ask problems, beside what the teacher answered to the same."""
    answers = evaluate.read_answers(node.folder.with_name("teacher"))
    evaluation = evaluate.run(
        actions.model(name),
        settings,
        node.folder,
        name=name,
        tokens=tokens_of(actions, name),
        other=None if name == "teacher" or answers is None else ("teacher", answers),
        progress=lambda done, total: actions.observer.node_progressed(node.name, done, total),
    )
    actions.observer.node_said(node.name, str(evaluation))
    overall = evaluation.overall
    return {"accuracy": overall.accuracy, "standard_error": overall.standard_error}


def _compare(actions: "Actions", node: "Node", name: str, rows: int) -> Values:
    found = agreement.run_all(
        [actions.teacher, actions.model(name)],
        agreement.AgreementSettings(rows=rows),
        node.folder.parent,
        text=_own_text(actions),
    )[0]
    actions.observer.node_said(node.name, str(found))
    (whole,) = (row for row in found.rows if row.by == "completion")
    return {"forward_kl": whole.forward_kl, "reverse_kl": whole.reverse_kl, "top1": whole.top1}


def _own_text(actions: "Actions") -> TokenSource | None:
    """Return the held-out rows of the recipe's own text; None where it is trained on problems."""
    return actions.heldout if has_own_text(actions.recipe) else None


def _ask_harness(
    actions: "Actions", node: "Node", name: str, asked: Values, limit: int | None
) -> Values:
    settings = harness.HarnessSettings(
        tasks=tuple(asked["suite"].removeprefix(HARNESS).split(",")),
        limit=limit,
        batch=asked["batch"],
        max_new_tokens=asked["max_new_tokens"],
    )
    found = harness.run_all([actions.model(name)], settings, node.folder.parent)[0]
    actions.observer.node_said(node.name, str(found))
    return {"scores": {f"{one.task} {one.metric}": one.value for one in found.scores}}
