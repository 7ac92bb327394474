"""What an export leaves beside the weights: where it is from, its verification and its card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybridize import __version__
from hybridize.core.artifacts import write_json
from hybridize.core.exports import TARGETS
from hybridize.exports.card import plain_check, write_card
from hybridize.exports.verify import Check
from hybridize.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What goes with a model that a run made."""

    card: str | None = None
    """Its model card, whose scores and metadata are kept."""
    recipe: str | None = None
    """The recipe of the run, as it was given."""

    @property
    def texts(self) -> dict[str, str]:
        """The files that are copied, by name."""
        return {} if self.recipe is None else {"recipe.yaml": self.recipe}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written; stands for its folder where a path is wanted."""

    folder: Path
    format: str
    target: str
    """Name in `hybridize.core.exports.TARGETS`."""
    dtype: str
    checks: tuple[Check, ...]
    unchecked: Mapping[str, str]
    """Program -> why it was not asked."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        lines = [f"{self.folder}  {self.format}  {TARGETS[self.target].class_name}  {self.dtype}"]
        lines += map(str, self.checks)
        lines += [f"not checked in {name}: {reason}" for name, reason in self.unchecked.items()]
        return "\n".join(lines)

    __repr__ = __str__


def write_report(model: Model, made: Exported, folder: Path, card: str | None) -> None:
    """Write verification.json and the model card."""
    write_json(
        folder / "verification.json",
        {
            "hybridize": __version__,
            "format": made.format,
            "dtype": made.dtype,
            "checks": [plain_check(check) for check in made.checks],
            "not_checked": made.unchecked,
        },
    )
    text = write_card(
        model,
        target=made.target,
        dtype=made.dtype,
        checks=made.checks,
        unchecked=made.unchecked,
        origin=card,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def find_origin(folder: Path) -> Origin:
    """Return what lies with a model folder: its card, and the recipe of the run it is in."""
    card, runs = folder / "README.md", folder.resolve().parents
    run = next((one for one in runs if (one / "status.json").is_file()), None)
    recipe = run / "recipe.yaml" if run else None
    return Origin(
        card=card.read_text(encoding="utf-8") if card.is_file() else None,
        recipe=recipe.read_text(encoding="utf-8") if recipe and recipe.is_file() else None,
    )
