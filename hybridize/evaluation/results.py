"""Results of several models: a tuple that is printed one below the other, and saved with times."""

from typing import Any, Protocol, TypeVar


class Timed(Protocol):
    """What was found of one model, and how long that took."""

    @property
    def seconds(self) -> float:
        """Time it took, which the result file leaves out."""

    def to_json(self) -> dict[str, Any]:
        """Return what the result file holds."""


One = TypeVar("One", bound=Timed)


class Results(tuple[One, ...]):
    """What was found of several models."""

    __slots__ = ()

    def to_json(self) -> list[dict[str, Any]]:
        """Return what the result files hold, with the time."""
        return [{**one.to_json(), "seconds": one.seconds} for one in self]

    def __repr__(self) -> str:
        return "\n".join(map(str, self))
