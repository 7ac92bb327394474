"""Commands about recipes, without loading a model: new, check, plan, ls."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridize.cli.options import (
    JsonOption,
    RecipeArgument,
    SetOption,
    list_facts,
    say,
    show,
    show_json,
    table,
)

if TYPE_CHECKING:
    from hybridize.core.recipe import Recipe
    from hybridize.core.shape import ModelShape


TRACES = "traces.jsonl"
"""What a recipe for another teacher than the shipped one is trained on where nothing is named."""


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(epilog="Example: hybridize new mine --teacher DIR --data traces.jsonl")(new)
    app.command(epilog="Example: hybridize check mine.yaml --set distill.optimizer.lr=1e-4")(check)
    app.command(epilog="Example: hybridize plan mine.yaml --stage h8 --tensors")(plan)
    app.command("ls", epilog="Example: hybridize ls mixers")(list_names)


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the recipe; NAME.yaml is written.")
    ],
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Shipped recipe to copy; every setting with its meaning otherwise.",
        ),
    ] = None,
    teacher: Annotated[
        str, typer.Option(metavar="MODEL", help="Model folder or hub id of the teacher.")
    ] = "shipped",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Reasoning traces to train on: JSONL or parquet; see docs/data.md."
        ),
    ] = None,
) -> None:
    """Write a commented recipe to start from."""
    from hybridize.core.artifacts import write_text
    from hybridize.core.catalog import RECIPES, did_you_mean, known_names
    from hybridize.core.errors import RecipeError

    path = Path(name if name.endswith(".yaml") else f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} exists. Choose another name, or remove it.")
    if data is not None and template is not None:
        raise RecipeError(
            f"new --data {data}: recipe {template} has data of its own. "
            "Leave --template out, or change data.train in the file."
        )
    if data is None and teacher != "shipped":
        data = TRACES
    known = known_names("recipes")
    if template is None:
        from hybridize.cli.teacher import read_shape
        from hybridize.core.template import render_template

        layers = read_shape(teacher).num_layers
        text = render_template(name=path.stem, teacher=teacher, num_layers=layers, data=data)
    elif template in known:
        text = (RECIPES / f"{template}.yaml").read_text(encoding="utf-8")
        text = text.replace(f"\nname: {template}\n", f"\nname: {path.stem}\n", 1)
        if teacher != "shipped":
            text = text.replace("{model: shipped}", f"{{model: {teacher}}}", 1)
            text = text.replace("the shipped teacher", teacher, 1)
    else:
        hint = did_you_mean(template, known)
        raise RecipeError(f"template {template!r} is not known. {hint}Known: {', '.join(known)}.")
    write_text(path, text)
    if template is None and data is not None and not Path(data).exists():
        say(f"it trains on {data}, which is not here: your teacher's traces, see docs/data.md")
    say(f"next: hybridize check {path}")
    show(str(path))


def check(
    recipe: RecipeArgument,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every value with its origin.")
    ] = False,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Speed the time is estimated for; by default that of the recipe's machine, or of "
            "two processor cores.",
        ),
    ] = None,
) -> None:
    """Check a recipe; estimate its tokens, memory and hours."""
    from hybridize.core.budget import list_speed, tell_fit
    from hybridize.core.cost import training_bytes
    from hybridize.core.plan import make_plan
    from hybridize.core.quantities import short_bytes, short_flops, short_seconds
    from hybridize.core.stored_text import tell_missing

    loaded, shape = _read(recipe, overrides)
    planned = make_plan(loaded, shape)
    speed = flops_per_second or planned.speed.flops_per_second
    if resolved:
        show(loaded.resolved().rstrip("\n"))
        return
    hours = short_seconds(planned.seconds(speed))
    facts = [
        *list_facts(loaded, shape),
        ("time", f"about {hours} of ranking and training at {short_flops(speed)}"),
    ]
    if planned.speed.gpus and (loaded.stages or loaded.sft):
        facts.append(("machine", planned.speed.machine))
        lines = [*list_speed(planned), tell_fit(planned)]
        facts += [(label, text) for label, _, text in (line.partition(": ") for line in lines)]
    else:
        aligning = planned.align_memory
        largest = max(training_bytes(loaded, shape), round(aligning.total) if aligning else 0)
        size = short_bytes(largest)
        facts.append(("memory", f"about {size} in the largest stage"))
    show("\n".join(f"{label:<10}{text}" for label, text in facts))
    missing = tell_missing(loaded)
    for text in missing:
        say(text)
    what = "is sound but for its data" if missing else "is sound"
    say(f"recipe {recipe} {what}; next: hybridize run {recipe}")


def plan(
    recipe: RecipeArgument,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this stage, `align` or `sft`.")
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Print the whole weight map of each stage.")
    ] = False,
    as_json: JsonOption = False,
    overrides: SetOption = [],  # noqa: B006  typer copies it
) -> None:
    """Print what each stage will do: layers, weights, trained parameters, memory and time."""
    from hybridize.core.plan import make_plan

    loaded, shape = _read(recipe, overrides)
    planned = make_plan(loaded, shape)
    if as_json:
        show_json(planned.stage(stage) if stage else planned.to_json())
        return
    from hybridize.cli.teacher import find_config
    from hybridize.pipeline.outlook import Outlook

    folder = find_config(loaded.teacher.model, loaded.teacher.revision)
    show(Outlook.read(loaded, planned, folder).text(stage, tensors=tensors))


def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="mixers, losses, methods, merges, suites, families, formats, recipes, exports: "
            "what fits where, or settings: the recipe reference as Markdown.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """List what a recipe can name."""
    from hybridize.core.catalog import KINDS, describe_names, did_you_mean
    from hybridize.core.errors import RecipeError

    if kind == "settings":
        from hybridize.core.manual import list_settings, render_manual

        if as_json:
            show_json(list_settings())
        else:
            show(render_manual().rstrip("\n"))
        return
    if kind == "exports":
        from hybridize.core.exports import TARGETS, list_limits, list_rows

        if as_json:
            show_json(TARGETS)
        else:
            show(f"{table(list_rows())}\n\n{table(list_limits())}")
        return
    if kind not in KINDS:
        known = (*KINDS, "exports", "settings")
        hint = did_you_mean(kind, known)
        raise RecipeError(f"ls {kind}: no such kind. {hint}Known: {', '.join(known)}.")
    names = describe_names(kind)
    if as_json:
        show_json(names)
    else:
        show(table([(name, text) for name, text in names.items()]))


def _read(recipe: str, overrides: list[str]) -> tuple["Recipe", "ModelShape"]:
    from hybridize.cli.teacher import read_shape
    from hybridize.core.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    return loaded, read_shape(loaded.teacher.model, loaded.teacher.revision)
