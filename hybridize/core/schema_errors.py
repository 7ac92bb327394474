"""What pydantic found wrong in a recipe, said in the user's words with the line it stands on."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hybridize.core.catalog import did_you_mean
from hybridize.core.document import Document, KeyPath, dotted, entry_name
from hybridize.core.errors import RecipeError
from hybridize.core.reference import bare, choices, field_texts, union_members

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a word",
    "bool_type": "true or false",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "a mapping, such as {key: value}",
    "model_type": "a mapping of settings",
    "string_too_short": "a word that is not empty",
    "too_short": "a list that is not empty",
    "string_pattern_mismatch": "letters, digits, '_', '-' and '.', and start with one of the first",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "none_required": "null",
}


def explain(error: ValidationError, document: Document, root: type[BaseModel]) -> RecipeError:
    """Turn the findings of pydantic into one error: a sentence a finding, in order of place."""
    sentences: dict[KeyPath, str] = {}
    for finding in error.errors(include_url=False):
        path, section, annotation = locate(root, tuple(finding["loc"]))
        if path not in sentences:
            sentence = _sentence(finding, path, section, annotation, document)
            sentences[path] = f"{document.place(path)}: {sentence}"
    return RecipeError("\n".join(sentences.values()))


def label(path: KeyPath, document: Document) -> str:
    """Print a path with named list entries by name: `stages.h8.tokens`, as `--set` takes it."""
    named = [
        entry_name(document.get(path[: i + 1])) or key if isinstance(key, int) else key
        for i, key in enumerate(path)
    ]
    return dotted(tuple(named))


def locate(root: type[BaseModel], loc: KeyPath) -> tuple[KeyPath, type[BaseModel], Any]:
    """Follow a pydantic location: the path in the recipe, the section around it, and its type.

    Pydantic puts the tag of a union into the location; the recipe has no such level.
    """
    path: KeyPath = ()
    section: type[BaseModel] = root
    annotation: Any = root
    for key in loc:
        annotation = bare(annotation)
        members = union_members(annotation)
        if members:
            annotation = members.get(key)
            continue
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
            field = annotation.model_fields.get(str(key))
            annotation = field.annotation if field else None
        elif get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            break
        path = (*path, key)
    return path, section, annotation


def _sentence(
    finding: Any,
    path: KeyPath,
    section: type[BaseModel],
    annotation: Any,
    document: Document,
) -> str:
    name, value = label(path, document), finding["input"]
    parent = label(path[:-1], document)
    if finding["type"] == "extra_forbidden":
        known = list(section.model_fields)
        listed = ", ".join(known)
        hint = did_you_mean(str(path[-1]), known)
        of = f"Settings of {parent}" if parent else "Sections"
        return f"{name} is not a setting. {hint}{of}: {listed}."
    if finding["type"] == "missing":
        return f"{name} is missing. Add it{_meaning(section, str(path[-1]))}"
    word = document.words.get(path)
    if isinstance(value, bool) and word and word.lower() not in ("true", "false"):
        return f'{name}: YAML reads {word} as {str(value).lower()}. Write "{word}" in quotes.'
    if value is None and finding["type"] != "value_error":
        return f"{name} is empty. Give it a value, or remove the line for the default."
    if finding["type"] in ("literal_error", "union_tag_invalid", "union_tag_not_found"):
        return _not_known(name, value, annotation)
    if finding["type"] == "value_error":
        return f"{name}: {finding['ctx']['error']}."
    expected = _EXPECTED.get(finding["type"], "").format(**finding.get("ctx", {}))
    if expected:
        return f"{name} is {value!r}, but must be {expected}."
    return f"{name} is {value!r}: {finding['msg']}."


def _not_known(name: str, value: Any, annotation: Any) -> str:
    """Say that a word is none of the known ones; for a union, the word is that of its tag."""
    known = choices(annotation)
    members = union_members(annotation)
    if members and not isinstance(value, dict):
        return f"{name} is {value!r}, but must be a mapping of settings."
    if members:
        tag = next(iter(next(iter(members.values())).model_fields))
        name, value = f"{name}.{tag}", value.get(tag)
    listed = ", ".join(known)
    if value is None:
        return f"{name} is missing. Known: {listed}."
    return f"{name} {value!r} is not known. {did_you_mean(str(value), known)}Known: {listed}."


def _meaning(section: type[BaseModel], name: str) -> str:
    text = field_texts(section).get(name)
    return f": {text[0].lower()}{text[1:]}" if text else "."


def none_words(document: Document) -> Iterator[KeyPath]:
    """List the values written `None`, which YAML reads as a word."""
    return (path for path in document.origins if document.get(path) == "None")
