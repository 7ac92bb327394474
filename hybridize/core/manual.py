"""The recipe reference as a Markdown page, written out of the schema so that it cannot go stale."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from hybridize.core.quantities import parse_share, parse_tokens
from hybridize.core.recipe import Recipe
from hybridize.core.reference import bare, choices, field_texts, union_members
from hybridize.core.resolved import print_value
from hybridize.core.section import Section
from hybridize.core.sections import Distill, Sft, Stage

_INTRODUCTION = """# Recipe reference

Written by `hybridize ls settings > docs/recipe.md` out of the schema; do not edit it by hand.

A recipe is one YAML file. Its sections are the stops of the street, in order; a section left out
is a stop skipped. Unknown keys and wrong types are errors that name the line. Budgets are in
tokens (`300M`; k, M, B and T are powers of ten), shares in percent (`2%`). Any value can be given
on the command line too: `--set distill.optimizer.lr=1e-4`; entries of a list are named by their
`name` or `method`, as in `--set stages.h6.tokens=1M`.

`hybridize new NAME` writes a recipe with these texts as comments, `hybridize check RECIPE
--resolved` prints every value with where it comes from."""


def render_manual() -> str:
    """Write the page: a table for each section of a recipe, and for each alternative in it."""
    fields = Recipe.model_fields
    simple = {name: field for name, field in fields.items() if not _sections_of(field)}
    parts = [_INTRODUCTION, "## The recipe itself", _table(_rows(Recipe, "", simple))]
    for name, field in fields.items():
        if name in simple:
            continue
        is_list = get_origin(bare(field.annotation)) is tuple
        parts.append(f"## {name}{' (a list)' if is_list else ''}")
        for tag, section in _sections_of(field).items():
            if tag:
                parts.append(f"### method: {tag}")
            parts += _section(section)
    parts += ["## Sources of text", "What `data.train`, `data.heldout` and `sft.data` may be."]
    for tag, section in union_members(_source_annotation()).items():
        parts += [f"### kind: {tag}", *_section(section)]
    return "\n\n".join(parts) + "\n"


def list_settings() -> dict[str, str]:
    """Map the dotted name of each setting to its meaning; entries of lists by their tag."""
    settings: dict[str, str] = {}
    for name, field in Recipe.model_fields.items():
        sections = _sections_of(field)
        if not sections:
            settings[name] = field_texts(Recipe)[name]
        for tag, section in sections.items():
            prefix = f"{name}.{tag}." if tag else f"{name}."
            rows = _rows(section, prefix, _own_fields(section))
            settings |= {key.strip("`"): text for key, text, _, _ in rows}
    return settings


def _section(section: type[BaseModel]) -> Iterator[str]:
    """List the paragraphs of one section: what it is, its table, what it inherits."""
    yield " ".join((section.__doc__ or "").split())
    own = _own_fields(section)
    yield _table(_rows(section, "", own))
    inherited = [f"`{name}`" for name in section.model_fields if name not in own]
    if inherited:
        yield f"Any of the keys of `distill` too: {', '.join(inherited)}."


def _own_fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Map the fields of a section, without those it takes from `distill`."""
    inherited = Distill.model_fields if section in (Stage, Sft) else {}
    fields = section.model_fields.items()
    return {name: field for name, field in fields if name not in inherited}


Row = tuple[str, str, str, str]


def _rows(
    section: type[BaseModel], prefix: str, only: Mapping[str, FieldInfo] | None = None
) -> Iterator[Row]:
    """List (name, meaning, values, default) of the settings of a section and those inside it."""
    texts = field_texts(section)
    for name, field in (section.model_fields if only is None else only).items():
        inner = bare(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _rows(inner, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", texts[name], _values(field), _default(field)


def _table(rows: Iterator[Row]) -> str:
    lines = ["| setting | meaning | value | default |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    return f"`{print_value(default.model_dump() if isinstance(default, Section) else default)}`"


def _values(field: FieldInfo) -> str:
    """Say in words what a setting may hold."""
    return _words(field.annotation, tuple(field.metadata))


def _words(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    readers = [note.func for note in metadata if isinstance(note, BeforeValidator)]
    if parse_tokens in readers:
        return "tokens"
    if parse_share in readers:
        return "share"
    if hasattr(annotation, "__metadata__"):
        return _words(get_args(annotation)[0], annotation.__metadata__)
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    if type(None) in get_args(annotation) and len(arms) == 1:
        return f"{_words(arms[0])}, or null"
    if union_members(annotation):
        return "see [sources of text](#sources-of-text)"
    words = choices(annotation)
    if words:
        return " or ".join(f"`{word}`" for word in words)
    if get_origin(annotation) is tuple:
        return f"list: {_words(arms[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    return {bool: "true or false", int: "whole number", float: "number"}.get(annotation, "text")


def _sections_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Map tag -> section of what a field holds, one or a list; the tag of a plain one is empty."""
    inner = bare(field.annotation)
    if get_origin(inner) is tuple:
        inner = bare(get_args(inner)[0])
    if isinstance(inner, type) and issubclass(inner, Section):
        return {"": inner}
    return {str(tag): section for tag, section in union_members(inner).items()}


def _source_annotation() -> Any:
    data = next(iter(_sections_of(Recipe.model_fields["data"]).values()))
    return data.model_fields["train"].annotation
