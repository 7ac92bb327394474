"""The `data` section of a recipe: where text comes from, and what is held out of training."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hybridize.core.section import Positive, Section, Share, Word

HELDOUT_SHARE = 0.02
"""Share of the prompts of a file that is held out where nothing else is said."""


class Tasks(Section):
    """Generated problems with their reasoning traces; made on the fly, without end."""

    kind: Literal["tasks"] = "tasks"
    """Where the text comes from."""
    mix: dict[str, Positive] | None = None
    """Kind of problem -> weight; null means all kinds alike."""
    style: Literal["traces", "text"] = "traces"
    """traces: problem, reasoning, answer. text: plain text without any problem."""


class Documents(Section):
    """What all stored text has: the names of its parts."""

    kind: str
    """Where the text comes from."""
    text: Word | None = None
    """Key of the whole text; every token counts in the loss."""
    prompt: Word | None = None
    """Key of the prompt, which does not count in the loss."""
    completion: Word | None = None
    """Key of the completion, which counts in the loss."""
    messages: Word | None = None
    """Key of a list of chat messages; the assistant's count in the loss."""
    long_documents: Literal["split", "drop"] = "split"
    """split: a document longer than a row is cut into rows. drop: it is left out."""


class Jsonl(Documents):
    """A JSONL file, one document a line.

    Give `text`, or `prompt` and `completion`, or `messages`; with none, keys of these very names
    are looked for in the first line.
    """

    kind: Literal["jsonl"] = "jsonl"
    """Where the text comes from."""
    path: Word
    """The file, or a pattern such as data/*.jsonl, seen from the working directory."""


class Parquet(Documents):
    """A parquet file, one document a row, with the same keys as a JSONL file."""

    kind: Literal["parquet"] = "parquet"
    """Where the text comes from."""
    path: Word
    """The file, or a pattern such as data/*.parquet, seen from the working directory."""


class Datasets(Documents):
    """A dataset of the `datasets` library, with the same keys as a JSONL file."""

    kind: Literal["datasets"] = "datasets"
    """Where the text comes from."""
    dataset: Word
    """A folder that `datasets` saved or can read, or a hub id."""
    config: Word | None = None
    """Configuration of a dataset that has several."""
    split: Word = "train"
    """Split of the dataset."""
    revision: Word | None = None
    """Commit or tag of a hub id; null means its newest."""


def _source_kind(value: Any) -> str | None:
    """Tell the kind of a source where it does not say so: by its `path`, `dataset` or `sources`."""
    if not isinstance(value, dict):
        return getattr(value, "kind", None)
    kind = "tasks"
    if "path" in value:
        kind = "parquet" if str(value["path"]).endswith(".parquet") else "jsonl"
    elif "dataset" in value:
        kind = "datasets"
    elif "sources" in value:
        kind = "blend"
    kind = value.get("kind", kind)
    return kind if isinstance(kind, str) else None


Stored = Jsonl | Parquet | Datasets
Part = Annotated[
    Annotated[Tasks, Tag("tasks")]
    | Annotated[Jsonl, Tag("jsonl")]
    | Annotated[Parquet, Tag("parquet")]
    | Annotated[Datasets, Tag("datasets")],
    Discriminator(_source_kind),
]


class Blend(Section):
    """Several sources, spread evenly over the rows in fixed shares."""

    kind: Literal["blend"] = "blend"
    """Where the text comes from."""
    sources: Annotated[tuple[Part, ...], Field(strict=False, min_length=1)]
    """What is blended; no blends again."""
    shares: Annotated[tuple[Share, ...], Field(strict=False, min_length=1)]
    """Share of each source in the tokens of a budget; they add up to 1."""


Source = Annotated[
    Annotated[Tasks, Tag("tasks")]
    | Annotated[Jsonl, Tag("jsonl")]
    | Annotated[Parquet, Tag("parquet")]
    | Annotated[Datasets, Tag("datasets")]
    | Annotated[Blend, Tag("blend")],
    Discriminator(_source_kind),
]


class Data(Section):
    """The text that is trained and measured on: reasoning traces, rather than web text."""

    train: Source = Tasks()
    """What students are trained on."""
    heldout: Source | None = None
    """What they are measured on; null means a held-out part of `train`."""
    heldout_share: Share | None = None
    """Share of the prompts of `train` that is held out where `heldout` is null; null means 2%."""
    sequence_length: Annotated[int, Field(gt=1)] = 512
    """Tokens in a row; documents are packed into rows."""
    cache: Word | None = None
    """Folder that keeps the tokens of files; null means `tokens` in the run folder."""
