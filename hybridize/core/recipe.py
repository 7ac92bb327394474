"""Recipe: the strict, typed form of the YAML file that asks for a conversion."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError

from hybridize.core.checks import check_recipe
from hybridize.core.document import Document, KeyPath, parse
from hybridize.core.errors import RecipeError
from hybridize.core.machine import Machine
from hybridize.core.schema_errors import explain, label, none_words
from hybridize.core.section import Section
from hybridize.core.sections import (
    Align,
    Bench,
    Devices,
    Distill,
    Evaluate,
    Export,
    Measurement,
    Merge,
    Mixer,
    Quantize,
    Report,
    Sft,
    Stage,
    Teacher,
)
from hybridize.core.sources import HELDOUT_SHARE, Data, Tasks
from hybridize.core.trackers import Tracker

_INHERITED = tuple(Distill.model_fields)
AnySection = TypeVar("AnySection", bound=Section)


class Recipe(Section):
    """One conversion, from the teacher to the report. A section left out is a stop skipped."""

    version: Literal[1]
    """Version of the recipe language."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "recipe"
    """Name of the run, and of its folder; the name of the file where it is left out."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    teacher: Teacher
    """The pretrained transformer to convert."""
    data: Data = Data()
    """What is trained and measured on."""
    mixer: Mixer = Mixer()
    """What takes the place of attention."""
    align: Align | None = None
    """Mixers of all layers trained once, for `mixer.init: aligned`."""
    importance: Annotated[tuple[Measurement, ...], Field(strict=False)] = ()
    """How layers are ranked."""
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = ()
    """The rounds of conversion, in order."""
    distill: Distill = Distill()
    """Defaults of every stage."""
    sft: Sft | None = None
    """Fine-tuning after the stages."""
    merge: Merge | None = None
    """One model from several."""
    evaluate: Evaluate | None = None
    """Scores."""
    bench: Bench | None = None
    """Speed and memory."""
    quantize: Quantize | None = None
    """Fewer bits, and what they cost."""
    export: Export | None = None
    """Folders for other programs."""
    report: Report | None = None
    """The page that shows it all."""
    devices: Devices = Devices()
    """How training uses its devices."""
    track: Annotated[tuple[Tracker, ...], Field(strict=False)] = ()
    """Where the metrics of training go besides metrics.jsonl, which holds them all: tensorboard,
    wandb, trackio. Each needs its package."""
    machine: Machine | None = None
    """What time, memory and money are estimated for."""

    _document: Document = PrivateAttr(default_factory=lambda: Document(name="recipe"))

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], *, name: str = "recipe", overrides: Iterable[str] = ()
    ) -> Self:
        """Make a recipe from nested plain values and `a.b=c` overrides, checked like a file.

        Raises:
            RecipeError: an unknown key, a wrong type or an impossible plan.
        """
        document = Document(name=name)
        for key, value in values.items():
            document.assign(key, _lists(value), "given in Python")
        document.override(overrides)
        return cls._from_document(document)

    @classmethod
    def _from_document(cls, document: Document) -> Self:
        if not isinstance(document.values, dict):
            raise document.error((), "a recipe is a mapping; begin with version: 1.")
        for path in none_words(document):
            raise document.error(
                path, f"{label(path, document)}: YAML reads None as a word. Write null."
            )
        try:
            given = cls.model_validate(document.values)
        except ValidationError as error:
            raise explain(error, document, cls) from None
        recipe = given._complete(document)
        for path, message in check_recipe(recipe):
            raise document.error(recipe._written(path), message)
        return recipe

    def _complete(self, document: Document) -> Self:
        """Fill in what depends on other sections, each at this one place."""
        updates: dict[str, Any] = {"stages": self._complete_stages()}
        if "name" not in self.model_fields_set:
            updates["name"] = Path(document.name).stem
        if self.sft:
            start = self.sft.start_from or (self.stages[-1].name if self.stages else "teacher")
            data = self.sft.data or self.data.train
            inherited = _inherit(self.sft, self.distill)
            updates["sft"] = inherited.model_copy(update={"start_from": start, "data": data})
        if self.merge and self.merge.weights is None:
            equal = 1 / len(self.merge.models)
            weights = (equal,) * len(self.merge.models)
            updates["merge"] = self.merge.model_copy(update={"weights": weights})
        for name in ("quantize", "export"):
            section = getattr(self, name)
            if section and section.model is None:
                updates[name] = section.model_copy(update={"model": self._last_model()})
        updates["data"] = self._complete_data()
        recipe = self.model_copy(update=updates)
        recipe._document = document
        return recipe

    def _last_model(self) -> str:
        if self.merge:
            return "merge"
        return "sft" if self.sft else self.stages[-1].name if self.stages else "teacher"

    def _complete_data(self) -> Data:
        data = self.data
        if data.heldout not in (None, data.train):
            return data
        share = data.heldout_share
        if share is None and not isinstance(data.train, Tasks):
            share = HELDOUT_SHARE
        return data.model_copy(update={"heldout": data.train, "heldout_share": share})

    def _complete_stages(self) -> tuple[Stage, ...]:
        methods = {measurement.method for measurement in self.importance}
        only = methods.pop() if len(methods) == 1 else None
        stages: list[Stage] = []
        for stage in self.stages:
            before = stages[-1].name if stages else "teacher"
            updates = {
                "start_from": stage.start_from or before,
                "rank_by": stage.rank_by or only,
            }
            stages.append(_inherit(stage, self.distill).model_copy(update=updates))
        return tuple(stages)

    def replace(self, values: Mapping[str, Any]) -> Self:
        """Return a recipe with some values replaced: `{"stages.h8.tokens": "600M"}`.

        Raises:
            RecipeError: as for a file.
        """
        document = self._document.copy()
        for key, value in values.items():
            document.assign(key, _lists(value), f"replace {key}")
        return self._from_document(document)

    def stage(self, name: str) -> Stage:
        """Return a stage by name.

        Raises:
            RecipeError: no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages) or "none"
        raise RecipeError(f"recipe {self._document.name}: no stage {name!r}. Stages: {names}.")

    def measurement(self, method: str) -> Measurement | None:
        """Return how `method` is measured; None where the recipe does not list it."""
        return next((entry for entry in self.importance if entry.method == method), None)

    def get_line(self, path: str) -> int | None:
        """Return the line a value stands on; `path` is dotted, list entries by name or index."""
        origin = self._document.origins.get(self._path(path), "")
        return int(origin.removeprefix("line ")) if origin.startswith("line ") else None

    def error(self, path: str, message: str) -> RecipeError:
        """Make the error of one value: its place in the file, then `message`."""
        return self._document.error(self._written(self._path(path)), message)

    def _written(self, path: KeyPath) -> KeyPath:
        """Return where a value was written: that of a stage may have been left to `distill`."""
        key = path[2:] if path[0] == "stages" else path[1:]
        inherited = path not in self._document.origins and path[0] in ("stages", "sft")
        return ("distill", *key) if inherited and key[:1] and key[0] in _INHERITED else path

    def _path(self, path: str) -> KeyPath:
        for known in self._document.origins:
            if path in (label(known, self._document), ".".join(map(str, known))):
                return known
        return tuple(path.split("."))

    def origin(self, path: KeyPath) -> str:
        """Say where a value comes from: `line 31`, an option, `distill` or `default`."""
        if path in self._document.origins:
            return self._document.origins[path]
        return "default" if self._written(path) == path else "distill"

    def resolved(self) -> str:
        """Print the recipe as YAML with every default filled in, each value with its origin.

        A stage and `sft` show what they say themselves; the rest is that of `distill`.
        """
        from hybridize.core.resolved import print_recipe

        return print_recipe(self)

    def __eq__(self, other: object) -> bool:
        """Compare values; where they were written does not count."""
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply `a.b=c` overrides; a name without a file is a shipped recipe.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a wrong type, an impossible plan.
    """
    from hybridize.core.catalog import RECIPES, known_names

    path = Path(path)
    if not path.exists() and str(path) in known_names("recipes"):
        path = RECIPES / f"{path}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(known_names("recipes"))
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError(
            f"recipe {path} cannot be read ({reason}). Give a file, or a shipped recipe: {shipped}."
        ) from error
    document = parse(text, path.name)
    document.override(overrides)
    return Recipe._from_document(document)


def _inherit(own: AnySection, defaults: Section) -> AnySection:
    """Fill the keys that `own` leaves out, also in sections inside it, from `defaults`."""
    updates: dict[str, Any] = {}
    for name in type(defaults).model_fields.keys() & type(own).model_fields.keys():
        value, default = getattr(own, name), getattr(defaults, name)
        if name not in own.model_fields_set:
            updates[name] = default
        elif isinstance(value, Section) and isinstance(default, Section):
            updates[name] = _inherit(value, default)
    return own.model_copy(update=updates)


def _lists(value: Any) -> Any:
    """Turn tuples into lists and sections into mappings, as YAML would give them."""
    if isinstance(value, Section):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
