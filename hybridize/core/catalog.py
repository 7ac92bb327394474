"""The extension dictionaries, read from their source so that listing them imports nothing."""

import ast
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
RECIPES = PACKAGE / "recipes"

_DICTIONARIES = {
    "mixers": ("models/mixers/__init__.py", "MIXERS"),
    "losses": ("training/objectives.py", "LOSSES"),
    "methods": ("core/catalog.py", "METHODS"),
    "merges": ("stages/merge.py", "MERGES"),
    "suites": ("evaluation/suites.py", "SUITES"),
    "families": ("models/families/__init__.py", "FAMILIES"),
    "gpus": ("core/machine.py", "GPUS"),
    "formats": ("stages/export.py", "FORMATS"),
    "engines": ("engines/__init__.py", "ENGINES"),
    "shapes": ("core/shapes.py", "SHAPES"),
}
METHODS = {
    "leave_one_out": "hybridize.stages.importance:leave_one_out",
    "replace_one": "hybridize.stages.importance:replace_one",
}
KINDS = (*_DICTIONARIES, "recipes")


def known_names(kind: str) -> tuple[str, ...]:
    """List the names of one kind: mixers, losses, methods, suites, families, formats or recipes."""
    if kind == "recipes":
        return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    return tuple(read_dictionary(kind))


def describe_names(kind: str) -> dict[str, str]:
    """Map each name of one kind to what stands behind it: a place, kinds of problems, a comment."""
    if kind != "recipes":
        return read_dictionary(kind)
    texts = ((name, (RECIPES / f"{name}.yaml").read_text("utf-8")) for name in known_names(kind))
    heads = ((name, takewhile(_is_comment, text.splitlines())) for name, text in texts)
    return {name: " ".join(line.lstrip("# ") for line in lines) for name, lines in heads}


def _is_comment(line: str) -> bool:
    return line.startswith("#")


@cache
def read_dictionary(kind: str) -> dict[str, str]:
    """Read a literal dictionary from its source: name -> the text of its value."""
    file, variable = _DICTIONARIES[kind]
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        named = any(isinstance(target, ast.Name) and target.id == variable for target in targets)
        value = getattr(node, "value", None)
        if named and isinstance(value, ast.Dict):
            return {
                str(key.value): ast.unparse(entry).strip("'")
                for key, entry in zip(value.keys, value.values, strict=True)
                if isinstance(key, ast.Constant)
            }
    raise AssertionError(f"{file} has no literal dictionary {variable}")


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Say `Did you mean x? ` where a known name is near, else nothing."""
    near = get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]}? " if near else ""
