"""The sweep of a merge: two models merged with several weights, each scored as the models are."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hybridize.core.errors import Interrupted
from hybridize.stages import evaluate, merge

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions
    from hybridize.pipeline.street import Node


def sweep_node(actions: "Actions", node: "Node") -> dict[str, Any]:
    """Score each weight of `merge.sweep`; return what the report draws."""
    section = node.settings["merge"]
    models = [actions.model(name) for name in section["models"]]
    settings = evaluate.EvaluateSettings(**node.settings["evaluate"])
    tried: list[dict[str, Any]] = []
    for weight in section["sweep"]:
        if tried and actions.stop():
            raise Interrupted("the time is over")
        how = merge.MergeSettings(method=section["method"], weights=(weight, 1.0 - weight))
        found = evaluate.run(merge.run(models, how), settings, name=f"{weight:g}")
        tried.append(
            {
                "weight": weight,
                "overall": asdict(found.overall),
                "kinds": {kind: asdict(score) for kind, score in found.kinds.items()},
            }
        )
        actions.observer.node_progressed(node.name, len(tried), len(section["sweep"]))
        overall = found.overall
        said = f"{weight:g} {section['models'][0]}  {overall.accuracy:.3f}"
        actions.observer.node_said(node.name, f"{said} ± {overall.standard_error:.3f}")
    return {"models": section["models"], "suite": settings.suite, "tried": tried}
