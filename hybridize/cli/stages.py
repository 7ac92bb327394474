"""Commands for one stage alone, on any model folder: importance, align, convert, distill, ...

Their settings are those of the recipe sections of the same name, given by --recipe or --set.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridize.cli.options import (
    RECIPE,
    WHERE,
    DeviceOption,
    JsonOption,
    ModelArgument,
    ModelsArgument,
    OutOption,
    RecipeOption,
    SetOption,
    TeacherOption,
    is_quiet,
    say,
    show,
    show_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridize.core.recipe import Recipe

TokensOption = Annotated[str, typer.Option(metavar="N", help="Budget in tokens, e.g. 300M.")]

LayersOption = Annotated[
    str | None, typer.Option(metavar="LIST", help="Layers, e.g. 3,7,8; from 0.")
]
AlignedOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", rich_help_panel=RECIPE, help="Start from the mixers that `align` wrote here."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(epilog="Example: hybridize importance shipped --method leave_one_out")(importance)
    app.command(
        epilog="Example: hybridize align shipped --out out/aligned --set align.tokens=100k"
    )(align)
    app.command(
        epilog="Example: hybridize convert shipped --layers 9,10 --out out/h2 "
        "--set mixer.kind=mamba2"
    )(convert)
    app.command(
        epilog="Example: hybridize distill out/h2 --tokens 1M --out out/h2-distilled "
        "--set distill.tokens_per_step=8192"
    )(distill)
    app.command(epilog="Example: hybridize sft out/h2 --tokens 1M --out out/h2-sft")(sft)
    app.command(epilog="Example: hybridize merge out/a out/b --weights 0.3,0.7 --out out/ab")(merge)


def importance(
    model: ModelArgument,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="leave_one_out or replace_one.")
    ] = "leave_one_out",
    teacher: TeacherOption = "shipped",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=WHERE, help="JSON file to write."),
    ] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the layers of a model by how much it needs their attention."""
    from hybridize import api
    from hybridize.cli.watch import prepare_machine
    from hybridize.core.errors import RecipeError

    prepare_machine()
    loaded = _settings(teacher, recipe, overrides, {"importance": [{"method": method}]})
    section = loaded.measurement(method)
    if section is None:
        raise RecipeError(f"recipe {recipe} does not list {method} under importance. Add it.")
    student = api.load_model(model, device=device)
    train, heldout = _sources(loaded, student.need_tokenizer())
    measured = api.measure_importance(
        student,
        heldout,
        settings=section,
        teacher=None if model == teacher else api.load_teacher(teacher, device=device),
        data=train,
        mixer=loaded.mixer.kind,
    )
    if out is not None:
        measured.save(out)
    if as_json:
        show_json(measured.to_json())
    else:
        show(str(measured))


def align(
    model: ModelArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", rich_help_panel=WHERE, help="Folder to write the mixers to."),
    ],
    layers: LayersOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = None,
) -> None:
    """Train the mixer of every layer once, each against its layer's attention in the teacher.

    The layers do not depend on each other, so conversions of any layers may start from them, with
    --aligned. An interrupted alignment goes on.
    """
    from hybridize import api
    from hybridize.cli.watch import prepare_machine
    from hybridize.core.errors import RecipeError
    from hybridize.pipeline.align import align_as_asked

    prepare_machine()
    loaded = _settings(model, recipe, overrides, {"align": {}})
    if loaded.align is None:
        raise RecipeError(f"recipe {recipe} has no section align. Add it.")
    teacher = api.load_teacher(model, dtype=loaded.teacher.dtype, device=device)
    train, heldout = _sources(loaded, teacher.need_tokenizer())
    made, _ = align_as_asked(
        loaded,
        teacher,
        train,
        out,
        layers=_read_layers("align", layers) if layers else None,
        heldout=heldout,
        progress=api.show_steps("align"),
    )
    say(str(made))
    show(str(out))


def convert(  # noqa: PLR0913  each is an option
    model: ModelArgument,
    out: OutOption,
    layers: LayersOption = None,
    layout: Annotated[
        str | None, typer.Option(metavar="STRIP", help="Whole layout instead, e.g. AAAMMAAM.")
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest file to write, e.g. 2GiB; 5 GB by default."),
    ] = None,
    teacher: TeacherOption = "shipped",
    aligned: AlignedOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
) -> None:
    """Replace the attention of some layers by the mixer of the recipe.

    Weights go from folder to folder tensor by tensor, so that no model need fit into memory; where
    the recipe calibrates its mixers, both models are loaded. A model that is attention throughout
    is its own teacher, if none is named.
    """
    from hybridize import api
    from hybridize.core.errors import RecipeError
    from hybridize.core.layout import Layout
    from hybridize.stages.convert import SHARD_BYTES, convert_folder, read_layout

    loaded = _settings(teacher, recipe, overrides)
    if (layers is None) == (layout is None):
        raise RecipeError("convert: say what to convert, by either --layers or --layout.")
    before, mixer = read_layout(model), loaded.mixer
    if teacher == "shipped" and not before.converted:
        teacher = model
    kind, settings = _choose_start(loaded, aligned)
    after = (
        Layout.parse(layout)
        if layout
        else before.convert(_read_layers("convert", str(layers)), to=kind)
    )
    if mixer.calibrate and not aligned:
        start, source = api.load_model(model), api.load_teacher(teacher)
        train, _ = _sources(loaded, start.need_tokenizer())
        student = api.convert(start, after, source=source, calibrate_on=train, **settings)
        student.save(out)
    else:
        convert_folder(
            *(model, after, out),
            source=teacher,
            settings=settings,
            shard_size=shard_size or SHARD_BYTES,
            progress=_show_bytes(),
        )
    say(f"before  {before}\nafter   {after}")
    show(str(out))


def _choose_start(recipe: "Recipe", aligned: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the kind of the mixers of a conversion, and how they start."""
    from hybridize.core.errors import RecipeError
    from hybridize.pipeline.align import start_from

    mixer = recipe.mixer
    if aligned is not None:
        return start_from(aligned)
    if mixer.init == "aligned":
        raise RecipeError(
            "convert: mixer.init is aligned. Name the folder of the mixers with --aligned."
        )
    return mixer.kind, {"init": mixer.init, "options": mixer.options, "seed": recipe.seed}


def _show_bytes() -> "Callable[[int, int], None]":
    """Return what says how far a long conversion has come, each ten percent of it."""
    from hybridize.core.quantities import short_bytes

    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if total > 2**30 and done * 10 // total > said:
            said = done * 10 // total
            say(f"written {said * 10}% of {short_bytes(total)}")

    return progress


def distill(
    student: ModelArgument,
    tokens: TokensOption,
    out: OutOption,
    teacher: TeacherOption = "shipped",
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = None,
) -> None:
    """Train a student towards its teacher; an interrupted training goes on."""
    from hybridize import api
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    loaded = _settings(teacher, recipe, overrides)
    model = api.load_model(student, device=device)
    train, heldout = _sources(loaded, model.need_tokenizer())
    trained = api.distill(
        model,
        api.load_teacher(teacher, dtype=loaded.teacher.dtype, device=device),
        train,
        tokens=tokens,
        settings=loaded.distill.model_dump(),
        heldout=heldout,
        out=_training_folder(out),
        progress=None if is_quiet() else api.show_steps(model.name),
    )
    trained.save(out)
    show(str(out))


def sft(
    student: ModelArgument,
    tokens: TokensOption,
    out: OutOption,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = None,
) -> None:
    """Fine-tune a model on completions, with the training keys of the section distill."""
    from hybridize import api
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    loaded = _settings("shipped", recipe, overrides)
    model = api.load_model(student, device=device)
    train, heldout = _sources(loaded, model.need_tokenizer())
    trained = api.sft(
        model,
        train,
        tokens=tokens,
        settings=loaded.distill.model_dump(),
        heldout=heldout,
        out=_training_folder(out),
        progress=None if is_quiet() else api.show_steps(model.name),
    )
    trained.save(out)
    show(str(out))


def merge(
    models: ModelsArgument,
    out: OutOption,
    weights: Annotated[
        str | None, typer.Option(metavar="LIST", help="One weight a model, e.g. 0.3,0.7.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="See `hybridize ls merges`.")] = (
        "linear"
    ),
) -> None:
    """Make one model from several of the same layout."""
    from hybridize import api
    from hybridize.core.errors import RecipeError

    try:
        given = [float(weight) for weight in weights.split(",")] if weights else []
    except ValueError as error:
        raise RecipeError(f"merge --weights {weights}: write numbers like 0.3,0.7.") from error
    api.merge([api.load_model(model) for model in models], weights=given, method=method).save(out)
    show(str(out))


def _settings(
    teacher: str, recipe: Path | None, overrides: list[str], values: dict[str, Any] | None = None
) -> "Recipe":
    """Read --recipe and --set; without a recipe, every section has its defaults."""
    from hybridize.core.recipe import Recipe, load_recipe

    if recipe is not None:
        return load_recipe(recipe, overrides)
    asked = {"version": 1, "teacher": {"model": teacher}, **(values or {})}
    return Recipe.from_values(asked, overrides=overrides)


def _sources(recipe: "Recipe", tokenizer: Any) -> tuple[Any, Any]:
    """Make the training rows and the held-out rows of a recipe."""
    from hybridize.pipeline.translate import make_source

    heldout = recipe.data.heldout
    assert heldout is not None, "a checked recipe has held-out data"
    return (
        make_source(recipe.data.train, recipe, tokenizer),
        make_source(heldout, recipe, tokenizer, heldout=True),
    )


def _training_folder(out: Path) -> Path:
    """Name the folder of checkpoints and metrics, beside the model as saving replaces that."""
    return out.with_name(f"{out.name}.training")


def _read_layers(command: str, text: str) -> list[int]:
    from hybridize.core.errors import RecipeError

    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"{command} --layers {text}: write numbers like 3,7,8.") from error
