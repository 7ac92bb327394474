"""What the fields of a section may hold and what they mean: types taken apart, docstrings read."""

import ast
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


@cache
def field_texts(section: type[BaseModel]) -> dict[str, str]:
    """Read the docstring under each field of a section; its own fields first, then inherited."""
    texts: dict[str, str] = {}
    for owner in section.__mro__:
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            break
        body = ast.parse(inspect.getsource(owner)).body[0]
        assert isinstance(body, ast.ClassDef), f"{owner} is not a class statement"
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(node.target, ast.Name), "a field has a plain name"
                texts.setdefault(node.target.id, " ".join(ast.literal_eval(after.value).split()))
    return texts


def choices(annotation: Any) -> tuple[str, ...]:
    """List the words a value may be: of a literal, or the tags of a union of sections."""
    annotation = bare(annotation)
    if get_origin(annotation) is Literal:
        return tuple(str(word) for word in get_args(annotation))
    return tuple(str(tag) for tag in union_members(annotation))


def bare(annotation: Any) -> Any:
    """Strip `Annotated` and `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        arms = [arm for arm in _arms(annotation) if arm is not type(None)]
        if len(arms) != 1:
            return annotation
        annotation = arms[0]


def _arms(annotation: Any) -> tuple[Any, ...]:
    kinds = (Union, type(int | str))
    return get_args(annotation) if get_origin(annotation) in kinds else ()


def union_members(annotation: Any) -> Mapping[Any, type[BaseModel]]:
    """Map tag -> section for a union of sections; empty for anything else."""
    members = {}
    for arm in _arms(bare(annotation)):
        section = bare(arm)
        if isinstance(section, type) and issubclass(section, BaseModel):
            tag = next(iter(section.model_fields.values()))
            members[get_args(tag.annotation)[0]] = section
    return members
