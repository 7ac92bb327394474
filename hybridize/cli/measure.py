"""The commands that score models: eval, on problems or beside a teacher, and diagnose, by layer."""

from pathlib import Path
from typing import Annotated

import typer

from hybridize.cli.options import WHERE, DeviceOption, JsonOption, ModelArgument, show, show_json

DRAWS, SERVER = "How answers are drawn", "A served model"
SubjectsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="Model folders, hub ids, or `shipped`; the others are compared with the first.",
    ),
]
SuiteOption = Annotated[
    str, typer.Option(metavar="NAME", help="See `hybridize ls suites`, or lm-eval:TASK,TASK.")
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Problems of each kind (tasks 100, quick 20), kind and difficulty (full 20), length "
        "and depth (recall 10), or task (lm-eval: all); rows of text (agreement 16).",
    ),
]
BatchOption = Annotated[int, typer.Option(metavar="N", min=1, help="Answers generated at once.")]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, help="Of problems and draws.")]
LengthsOption = Annotated[
    str | None, typer.Option(metavar="LIST", help="recall: tokens of the prompts.")
]
StockOption = Annotated[
    bool, typer.Option("--stock", help="Load with the class of transformers, not with our own.")
]
LongestOption = Annotated[
    int, typer.Option(metavar="N", min=1, rich_help_panel=DRAWS, help="Tokens of an answer.")
]
SamplesOption = Annotated[
    int,
    typer.Option(
        metavar="K",
        min=1,
        rich_help_panel=DRAWS,
        help="Answers to each problem, for pass@k and the majority vote.",
    ),
]
TemperatureOption = Annotated[
    float, typer.Option(metavar="T", min=0, rich_help_panel=DRAWS, help="0: the likeliest token.")
]
TopOption = Annotated[
    float,
    typer.Option(metavar="P", min=0, max=1, rich_help_panel=DRAWS, help="Share to draw from."),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(metavar="URL", rich_help_panel=SERVER, help="Server that speaks OpenAI's API."),
]
ServedOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=SERVER, help="Name of the model there."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", rich_help_panel=SERVER, help="Where its tokenizer lies."),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Own text to read: JSONL, parquet, a dataset's folder or hub id."
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", rich_help_panel=WHERE, help="Folder for result files."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("eval", epilog="Example: hybridize eval shipped out/h2 --suite quick")(evaluate)
    app.command(epilog="Example: hybridize diagnose out/h2 --teacher shipped")(diagnose)


def evaluate(  # noqa: PLR0913  an option is an argument
    models: SubjectsArgument = None,
    suite: SuiteOption = "tasks",
    limit: LimitOption = None,
    batch: BatchOption = 32,
    seed: SeedOption = 2,
    lengths: LengthsOption = None,
    text: TextOption = None,
    stock: StockOption = False,
    max_new_tokens: LongestOption = 256,
    samples: SamplesOption = 1,
    temperature: TemperatureOption = 0.0,
    top_p: TopOption = 1.0,
    endpoint: EndpointOption = None,
    model_name: ServedOption = None,
    tokenizer: TokenizerOption = None,
    out: OutFolder = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask models the same held-out problems and score what they generate."""
    from hybridize.cli import scoring
    from hybridize.cli.watch import prepare_machine

    scoring.check_suite(suite)
    prepare_machine()
    subjects = scoring.load_subjects(models or [], stock=stock, device=device)
    if endpoint is not None:
        where = tokenizer or (models[0] if models else None)
        subjects.append(scoring.connect(endpoint, model_name, where))
    draws = {
        "max_new_tokens": max_new_tokens,
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
    }
    more = {"lengths": scoring.parse_lengths(lengths)} if lengths else {}
    found = scoring.run_suite(
        subjects, suite, out, limit=limit, batch=batch, seed=seed, text=text, **draws, **more
    )
    if as_json:
        show_json(found.to_json())
    else:
        show(str(found))


def diagnose(
    model: ModelArgument,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Compare hidden states with this model's."),
    ] = None,
    tokens: Annotated[str, typer.Option(metavar="N", help="Held-out tokens to look at.")] = "8k",
    problems: Annotated[
        int, typer.Option(metavar="N", min=0, help="Of each kind, generated without each mixer.")
    ] = 0,
    text: TextOption = None,
    out: OutFolder = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at each converted layer: what it adds, how far it remembers, where it goes wrong."""
    from hybridize.cli import scoring
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    found = scoring.run_diagnosis(
        model, teacher, out, tokens=tokens, problems=problems, text=text, device=device
    )
    if as_json:
        show_json(found.to_json())
    else:
        show(str(found))
