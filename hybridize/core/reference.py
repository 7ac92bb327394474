"""What the fields of the recipe mean: their docstrings, and the reference page made of them."""

import ast
import inspect
from functools import cache

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
