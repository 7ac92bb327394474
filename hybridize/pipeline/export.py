"""The exports of a run: its last model, written for other programs and verified there."""

from typing import Any

from hybridize.core.artifacts import RunFolder
from hybridize.core.recipe import Recipe
from hybridize.models.model import Model
from hybridize.pipeline.street import Node
from hybridize.report import model_card
from hybridize.stages import export


def export_model(recipe: Recipe, model: Model, node: Node, run: RunFolder) -> dict[str, Any]:
    """Write a model of a run into the folder of a node; return the values of its `result.json`.

    Args:
        recipe: that asks for the export.
        model: of the run.
        node: `export/<format>`.
        run: folder of the run.
    """
    section = recipe.export
    assert section is not None, "the recipe is checked before it runs"
    name = node.name.partition("/")[2]
    made = export.run(
        model,
        export.ExportSettings(format=name, dtype=section.dtype),
        node.folder,
        origin=export.Origin(
            card=model_card(run.path, model.name) if model.name != "teacher" else None,
            recipe=run.recipe.read_text(encoding="utf-8"),
        ),
    )
    return {
        "model": model.name,
        "class": made.target,
        "dtype": made.dtype,
        "deviation": {check.reader: check.deviation for check in made.checks},
        "not_checked": dict(made.unchecked),
    }
