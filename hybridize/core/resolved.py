"""A recipe printed as YAML with every default filled in and the origin of each value beside it."""

from collections.abc import Iterator
from typing import Any

import yaml

from hybridize.core.document import KeyPath
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Distill, Training

_INDENT = "  "


def print_recipe(recipe: Recipe) -> str:
    """Print `recipe`; loading the text gives an equal recipe."""
    rows: list[tuple[str, str]] = []
    for section, value in recipe.model_dump().items():
        if section in ("distill", "sft") and value:
            value = dict(sorted(value.items(), key=lambda item: item[0] in Training.model_fields))
        if value is not None:
            rows += _rows(recipe, (section,), value)
    width = min(60, max(len(text) for text, origin in rows if origin))
    return "".join(
        f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in rows
    )


def _rows(recipe: Recipe, path: KeyPath, value: Any) -> Iterator[tuple[str, str]]:
    """List (line, origin) of one key; a key that only holds other keys has no origin."""
    indent = _INDENT * (sum(isinstance(key, str) for key in path) - 1) + "  " * _lists_above(path)
    key = path[-1]
    if isinstance(value, dict) and value:
        yield f"{indent}{key}:", ""
        for inner, entry in value.items():
            yield from _rows(recipe, (*path, inner), entry)
    elif isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value):
        yield f"{indent}{key}:", ""
        for i, entry in enumerate(value):
            yield from _entry(recipe, (*path, i), entry, indent)
    else:
        yield f"{indent}{key}: {print_value(value)}", recipe.origin(path)


def _lists_above(path: KeyPath) -> int:
    return sum(isinstance(key, int) for key in path)


def _entry(
    recipe: Recipe, path: KeyPath, entry: dict[str, Any], indent: str
) -> Iterator[tuple[str, str]]:
    """List the lines of one mapping in a list, its name first, inherited keys left out."""
    inherited = set(Distill.model_fields) if path[0] == "stages" else set()
    keys = sorted(entry, key=lambda key: (key not in ("name", "method"), key in inherited))
    dash = f"{indent}  - "
    for key in keys:
        inner = (*path, key)
        if key in inherited and recipe.origin(inner) == "distill":
            continue
        for text, origin in _rows(recipe, inner, entry[key]):
            yield (dash + text[len(dash) :] if dash else text), origin
            dash = ""


def print_value(value: Any) -> str:
    """Print a value on one line so that YAML reads it back."""
    text = _dump(value, allow_unicode=True)
    return text if text.isprintable() else _dump(value, allow_unicode=False)


def _dump(value: Any, *, allow_unicode: bool) -> str:
    text: str = yaml.safe_dump(
        list(value) if isinstance(value, tuple) else value,
        default_flow_style=True,
        width=10**6,
        allow_unicode=allow_unicode,
        sort_keys=False,
    )
    return text.removesuffix("...\n").rstrip("\n")
