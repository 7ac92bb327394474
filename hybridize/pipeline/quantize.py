"""Quantisation: of a model in hand, and as the stop of a run, a type a node."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.core.artifacts import plain
from hybridize.core.recipe import Recipe
from hybridize.core.settings import read_settings
from hybridize.models.folders import find_folder
from hybridize.models.model import Model
from hybridize.pipeline.street import ask_in_engine
from hybridize.pipeline.translate import make_source
from hybridize.report import model_card
from hybridize.report.quantization import write_quantization
from hybridize.stages import export
from hybridize.stages import quantize as stage
from hybridize.training.data import TaskRows, TokenSource

if TYPE_CHECKING:
    from hybridize.pipeline.actions import Actions
    from hybridize.pipeline.street import Node

Say = Callable[[str], None]
SERVED = "served"
"""Name, behind `quantize/`, of the node that asks all types in llama.cpp."""
_ROW = 1024
"""Tokens of a row of held-out text, where the model takes as many."""


def quantize(
    model: Model,
    out: Path | str,
    *,
    types: Sequence[str] = ("q8_0", "q4_0"),
    heldout: TokenSource | None = None,
    tokens: int = 32_768,
    origin: export.Origin | None = None,
    say: Say = lambda _: None,
    **asked: Any,
) -> stage.Quantised:
    """Write a model in each type, with a table of what each costs: `out`/quantize.json, .md, .csv.

    Args:
        model: that llama.cpp can hold; see `hybridize ls exports`.
        out: gets a folder for each type, which `hybridize serve` serves.
        types: such as q8_0, q4_0 or, where llama-quantize is installed, q4_k_m.
        heldout: text that KL is measured on; by default the built-in tasks.
        tokens: of that text.
        origin: what goes with the model; see `hybridize.stages.export.find_origin`.
        say: is told of each type as it is measured.
        asked: fields of `hybridize.evaluation.served.ServedSettings`, such as `problems`.

    Raises:
        RecipeError: a type is not known, or named twice.
        ModelError: llama.cpp cannot hold the model, or answers otherwise than it.
        MachineError: a package, a program or room is missing.
    """
    stage.check_types(types)
    settings = _make_settings(types, tokens, **asked)
    rows = heldout or _draw_rows(model)
    made = stage.run(model, settings, rows, Path(out), origin=origin, say=say)
    write_quantization(plain(made), Path(out))
    return made


def quantize_with(
    recipe: Recipe,
    model: Model,
    out: Path | str,
    *,
    origin: export.Origin | None = None,
    say: Say = lambda _: None,
) -> stage.Quantised:
    """Quantise a model as the section `quantize` of a recipe says; raises like `quantize`."""
    section, heldout = recipe.quantize, recipe.data.heldout
    assert section is not None and heldout is not None, "the recipe is checked and complete"
    return quantize(
        model,
        out,
        types=section.types,
        heldout=make_source(heldout, recipe, model.need_tokenizer(), heldout=True),
        tokens=section.tokens,
        origin=origin,
        say=say,
        **ask_in_engine(recipe),
    )


def find_origin(model: Path | str) -> export.Origin:
    """Return what lies with a model: its card, and the recipe of the run it is in.

    Raises:
        ModelError: there is no such model.
    """
    return export.find_origin(find_folder(model))


def quantize_node(actions: "Actions", node: "Node") -> dict[str, Any]:
    """Do what a node `quantize/...` stands for; return the values of its `result.json`."""
    section, name = actions.recipe.quantize, node.name.partition("/")[2]
    assert section is not None and section.model is not None, "the recipe is checked and complete"
    model, folder = actions.model(section.model), actions.folder

    def say(text: str) -> None:
        actions.observer.node_said(node.name, text)

    if name == SERVED:
        settings = _make_settings(section.types, section.tokens, **ask_in_engine(actions.recipe))
        table = stage.compare(model, settings, folder.quantize, say=say)
        write_quantization(plain(table), folder.quantize)
        say(str(table))
        return {"engine": table.engine, "not_served": table.not_served}
    assert actions.heldout is not None, "a checked recipe has held-out data"
    settings = _make_settings((name,), section.tokens)
    origin = export.Origin(
        card=None if model.name == "teacher" else model_card(folder.path, model.name),
        recipe=folder.recipe.read_text(encoding="utf-8"),
    )
    quality = stage.make(model, name, settings, actions.heldout, node.folder, origin=origin)
    say(stage.tell(quality))
    values: dict[str, Any] = plain(quality)
    return values


def _make_settings(types: Sequence[str], tokens: int, **asked: Any) -> stage.QuantizeSettings:
    served = stage.ServedSettings(threads=read_settings().threads, **asked)
    return stage.QuantizeSettings(types=tuple(types), tokens=tokens, served=served)


def _draw_rows(model: Model) -> TokenSource:
    """Make held-out rows of the built-in tasks."""
    longest = model.network.config.max_position_embeddings or _ROW
    return TaskRows(
        model.need_tokenizer(), sequence_length=min(_ROW, longest), seed=0, split="heldout"
    )
