"""What every section of a recipe is made of: the strict base, and the types of its values."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from hybridize.core.quantities import parse_share, parse_tokens


def read_number(value: Any) -> Any:
    """Read `1e-4`, which YAML takes for text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def read_names(value: Any) -> Any:
    """Read one name as a list of one."""
    return [value] if isinstance(value, str) else value


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(gt=0)]
Share = Annotated[float, BeforeValidator(parse_share)]
Number = Annotated[float, BeforeValidator(read_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Word = Annotated[str, Field(min_length=1)]
Precision = Literal["float32", "bfloat16"]
Scalar = bool | int | float | str | None
Words = Annotated[tuple[Word, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[Word, ...], BeforeValidator(read_names), Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
