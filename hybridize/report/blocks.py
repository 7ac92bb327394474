"""What a report is made of: sections of paragraphs, warnings, tables, figures and file texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridize.report.tables import Row, Table

Draw = Callable[[Sequence[Row], int], str]


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two."""

    text: str


@dataclass(frozen=True)
class Missing:
    """What is not there yet, in place of what would be shown."""

    text: str


@dataclass(frozen=True)
class Caution:
    """Something a reader must not overlook."""

    text: str


@dataclass(frozen=True)
class Verbatim:
    """The text of a file, folded away."""

    title: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing of a table, with the sentence that says how to read it."""

    name: str
    caption: str
    table: Table
    draw: Draw

    def svg(self, width: int) -> str:
        """Draw the rows of the table at that width in pixels."""
        return self.draw(self.table.rows, width)


@dataclass(frozen=True)
class Pair:
    """Two figures side by side where there is room."""

    left: Figure
    right: Figure


@dataclass(frozen=True)
class Folded:
    """A long table, folded away under its title."""

    table: Table


Block = Paragraph | Missing | Caution | Verbatim | Figure | Pair | Folded | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    anchor: str
    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """A whole page: its name, its verdict, the first screen, and the sections."""

    name: str
    verdict: str
    first: tuple[Block, ...]
    sections: tuple[Section, ...]
    extra_tables: tuple[Table, ...] = ()
    """Tables written as CSV only."""

    def blocks(self) -> tuple[Block, ...]:
        """List all blocks in reading order, the two of a pair one by one."""
        found: list[Block] = []
        for block in self.first + tuple(b for section in self.sections for b in section.blocks):
            found += [block.left, block.right] if isinstance(block, Pair) else [block]
        return tuple(found)

    def tables(self) -> tuple[Table, ...]:
        """List each table once, those of figures included, in reading order."""
        found = {table.name: table for table in self.extra_tables}
        for block in self.blocks():
            if isinstance(block, Table):
                found[block.name] = block
            elif isinstance(block, Figure | Folded):
                found[block.table.name] = block.table
        return tuple(found.values())

    def figures(self) -> tuple[Figure, ...]:
        """List each figure once, in reading order."""
        found = {block.name: block for block in self.blocks() if isinstance(block, Figure)}
        return tuple(found.values())
