"""The weight of a loss in a mixture: a number, or one that changes over a stage or by layer."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from hybridize.core.section import NonNegative, Positive, Section, read_number

_HOW = "Write a number above 0, or settings such as {start: 1.0, end: 0.0}"

LayerNumber = Annotated[
    str,
    BeforeValidator(lambda key: str(key) if isinstance(key, int) else key),
    Field(pattern=r"^(0|[1-9][0-9]*)$"),
]


class LossWeight(Section):
    """A weight that goes from one value to another, and the layers it is shared out to."""

    start: NonNegative = 1.0
    """At the first token of the stage; 0 measures the loss and does not train on it."""
    end: NonNegative | None = None
    """At the last token of the stage, in a straight line; null stays as it starts."""
    layers: dict[LayerNumber, Positive] | None = None
    """Of a loss between layers: layer, from 0 -> weight; null takes the mean over all layers."""

    def at(self, share: float) -> float:
        """Return the weight when `share` of the tokens have been seen, 0 to 1."""
        end = self.start if self.end is None else self.end
        return self.start + (end - self.start) * share


def read_weight(value: Any) -> Any:
    """Check one entry of `loss`: a number above 0 as it is, settings as a `LossWeight`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, LossWeight):
        return value
    if isinstance(value, Mapping):
        try:
            return LossWeight.model_validate(value)
        except ValidationError as error:
            raise ValueError(_explain(error)) from None
    number = read_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{value!r} is no weight. {_HOW}")
    if not isfinite(number) or number <= 0:
        raise ValueError(f"a weight of {number} must be more than 0. {_HOW}")
    return float(number)


def _explain(error: ValidationError) -> str:
    finding = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        return f"{key} is not a setting of a weight. It has {', '.join(LossWeight.model_fields)}"
    if key.startswith("layers") and finding["loc"][-1] == "[key]":
        return f"{finding['input']!r} is not the number of a layer, counted from 0"
    message = finding["msg"].replace("Input should be", "must be")
    return f"{key} is {finding['input']!r}, but {message}"


LossWeights = dict[str, Annotated[Any, BeforeValidator(read_weight)]]
"""Loss -> a number or a `LossWeight`."""
