"""A commented recipe to start from, written out of the schema: each setting with its meaning."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from hybridize.core.recipe import Recipe
from hybridize.core.reference import bare, field_texts, union_members
from hybridize.core.resolved import print_value
from hybridize.core.section import Section
from hybridize.core.sections import Distill, Sft, Stage

_COLUMN = 44
_AGREEMENT = {"suite": "agreement", "every_stage": True}
"""What needs no problems: reading held-out text beside the teacher."""


def render_template(*, name: str, teacher: str, num_layers: int, data: str | None = None) -> str:
    """Write a recipe that converts half, then three quarters of the layers of `teacher`.

    Settings with a default are commented out, so that the file says only what it asks for.

    Args:
        data: JSONL or parquet file of the text to train on; None takes the built-in problems, which
            say little of a teacher but the shipped one.
    """
    source = {"kind": "tasks"}
    evaluation: Mapping[str, Any] = {"suite": "tasks"}
    if data is not None:
        kind = "parquet" if data.endswith(".parquet") else "jsonl"
        source, evaluation = {"kind": kind, "path": data}, _AGREEMENT
    half, most = max(1, num_layers // 2), max(2, num_layers * 3 // 4)
    first, last = f"h{half}", f"h{most}"
    wanted = {
        "version": 1,
        "name": name,
        "seed": 0,
        "teacher": {"model": teacher},
        "data": {"train": source, "sequence_length": 1024},
        "mixer": {"kind": "mamba2", "init": "from_attention"},
        "importance": [{"method": "leave_one_out"}, {"method": "replace_one"}],
        "stages": [
            {"name": first, "converted": half, "tokens": "50M", "rank_by": "leave_one_out"},
            {"name": last, "converted": most, "tokens": "50M", "rank_by": "replace_one"},
        ],
        "distill": {"tokens_per_step": 65_536},
        "sft": {"tokens": "20M", "start_from": last},
        "merge": {"models": ["sft", last]},
        "evaluate": evaluation,
        "bench": {"output_tokens": 64},
        "report": {"format": ["html", "md"]},
    }
    head = (
        f"# Convert {most} of the {num_layers} layers of {teacher}. Settings with a default are\n"
        "# commented out; remove the mark to change one. `hybridize check` says what is wrong.\n"
    )
    return head + "\n".join(_section(Recipe, wanted, "")) + "\n"


def _section(section: type[BaseModel], wanted: Mapping[str, Any], indent: str) -> Iterator[str]:
    """List the lines of a section: what is wanted as it is, the other defaults commented out."""
    inherited = Distill.model_fields if section in (Stage, Sft) else {}
    for name, field in section.model_fields.items():
        text = field_texts(section)[name]
        if isinstance(wanted.get(name), dict | list):
            yield from _nested(name, field.annotation, wanted[name], indent, text)
        elif name in wanted:
            yield _line(f"{indent}{name}: {print_value(wanted[name])}", text)
        elif name not in inherited and not field.is_required():
            yield _line(f"{indent}# {name}: {print_value(_simple(field.default))}", text)


def _nested(name: str, annotation: Any, value: Any, indent: str, text: str) -> Iterator[str]:
    """List the lines of a mapping or list that is wanted."""
    if not indent:
        yield ""
    if isinstance(value, dict):
        yield _line(f"{indent}{name}:", text)
        yield from _section(_choose(annotation, value), value, indent + "  ")
        return
    entry = get_args(bare(annotation))[0] if get_origin(bare(annotation)) is tuple else None
    if not isinstance(value[0], dict):
        yield _line(f"{indent}{name}: {print_value(value)}", text)
        return
    yield _line(f"{indent}{name}:", text)
    for number, wanted in enumerate(value):
        lines = list(_section(_choose(entry, wanted), wanted, indent + "    "))
        if number and _choose(entry, value[0]) is _choose(entry, wanted):
            lines = [line.partition(" # ")[0].rstrip() for line in lines if _is_setting(line)]
        first = next(i for i, line in enumerate(lines) if _is_setting(line))
        lines[first] = f"{indent}  - {lines[first].lstrip()}"
        yield from [lines[first], *lines[:first], *lines[first + 1 :]]


def _choose(annotation: Any, value: Mapping[str, Any]) -> type[BaseModel]:
    """Find the section a mapping stands for; in a union, the one of its tag."""
    members = union_members(annotation)
    tags = [tag for tag in value.values() if isinstance(tag, str) and tag in members]
    chosen = members[tags[0]] if members else bare(annotation)
    assert issubclass(chosen, BaseModel), f"{annotation} is not a section"
    return chosen


def _is_setting(line: str) -> bool:
    return not line.lstrip().startswith("#")


def _line(setting: str, text: str) -> str:
    return f"{setting:<{_COLUMN}}  # {text}"


def _simple(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Section) else value
