"""The command compare: what differs between two runs, or between two models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hybridize.cli.options import JsonOption, show, show_json

Differences = dict[str, list[str]]
_BLOCK = 2**24
"""Bytes of a tensor that are read at once."""


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Example: hybridize compare runs/a runs/b")(compare)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder or model folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    as_json: JsonOption = False,
) -> None:
    """Say what differs between two runs or two models."""
    from hybridize.core.errors import RunError

    kinds = [_kind(folder) for folder in (first, second)]
    if kinds[0] is None or kinds[0] != kinds[1]:
        told = " and ".join(
            f"{folder} is {f'a {kind}' if kind else 'neither a run nor a model'}"
            for folder, kind in zip((first, second), kinds, strict=True)
        )
        raise RunError(f"compare: {told}. Give two runs or two models.")
    differences = (_runs if kinds[0] == "run" else _models)(first, second)
    if as_json:
        show_json(differences)
        return
    for section, lines in differences.items():
        show(f"{section}: {'the same' if not lines else ''}".rstrip())
        for line in lines:
            show(f"  {line}")


def _kind(folder: Path) -> str | None:
    if (folder / "recipe.resolved.yaml").exists():
        return "run"
    return "model" if (folder / "config.json").exists() else None


def _runs(first: Path, second: Path) -> Differences:
    from hybridize.core.artifacts import changed_keys

    readers = {"recipe": _recipe, "layouts": _layouts, "scores": _scores}
    return {
        name: [
            f"{key}: {old} -> {new}" for key, old, new in changed_keys(read(first), read(second))
        ]
        for name, read in readers.items()
    }


def _recipe(run: Path) -> dict[str, Any]:
    """Read the resolved recipe, list entries by name so that they compare one to one."""
    from hybridize.core.document import entry_name, parse

    def named(value: Any) -> Any:
        if isinstance(value, list) and all(entry_name(entry) for entry in value):
            return {entry_name(entry): named(entry) for entry in value}
        return {k: named(v) for k, v in value.items()} if isinstance(value, dict) else value

    text = (run / "recipe.resolved.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = named(parse(text, str(run)).values)
    return values


def _layouts(run: Path) -> dict[str, Any]:
    from hybridize.core.artifacts import RunFolder, read_json

    path = RunFolder(run).plan
    stages = read_json(path)["stages"] if path.exists() else []
    return {stage["name"]: stage["layout"] for stage in stages}


def _scores(run: Path) -> dict[str, Any]:
    from hybridize.core.artifacts import read_json

    found = {path.stem: read_json(path)["overall"] for path in sorted(run.glob("eval/*.json"))}
    return {
        model: f"{overall['accuracy']:.3f} ± {overall['standard_error']:.3f}"
        for model, overall in found.items()
    }


def _models(first: Path, second: Path) -> Differences:
    from hybridize.core.artifacts import changed_keys
    from hybridize.core.model_files import read_config

    configs = [read_config(folder) for folder in (first, second)]
    tensors = [dict(_tensors(folder)) for folder in (first, second)]
    keys = [f"{key}: {old} -> {new}" for key, old, new in changed_keys(configs[0], configs[1])]
    ours, theirs = tensors
    lines = [f"{name}: only in {first}" for name in ours if name not in theirs]
    lines += [f"{name}: only in {second}" for name in theirs if name not in ours]
    shared = [name for name in ours if name in theirs]
    lines += [f"{name}: differs" for name in shared if ours[name] != theirs[name]]
    return {"config": keys, "tensors": lines}


def _tensors(folder: Path) -> Iterator[tuple[str, str]]:
    """List the name of each tensor with a digest of its type, shape and bytes."""
    import hashlib

    from hybridize.core.model_files import list_tensors

    for name, place in sorted(list_tensors(folder).items()):
        digest = hashlib.sha256(f"{place.dtype}{place.shape}".encode())
        with place.file.open("rb") as file:
            file.seek(place.start)
            for start in range(place.start, place.stop, _BLOCK):
                digest.update(file.read(min(_BLOCK, place.stop - start)))
        yield name, digest.hexdigest()
