"""A report as Markdown, with the same tables and links to the figures: for a pull request."""

from hybridize.report.blocks import (
    Block,
    Caution,
    Figure,
    Folded,
    Missing,
    Pair,
    Paragraph,
    Report,
    Verbatim,
)
from hybridize.report.tables import Table, to_markdown

_MAX_ROWS = 60


def render_markdown(report: Report) -> str:
    """Write the whole report."""
    parts = [f"# {report.name}", f"**{report.verdict}**"]
    parts += [_block(block) for block in report.first]
    for section in report.sections:
        parts.append(f"## {section.heading}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return text
        case Missing(text):
            return f"_{text}_"
        case Caution(text):
            return f"> **Warning.** {text}"
        case Verbatim(title, text):
            fenced = f"```yaml\n{text.rstrip()}\n```"
            return f"<details><summary>{title}</summary>\n\n{fenced}\n\n</details>"
        case Table():
            return f"**{block.title}**\n\n{_table(block)}"
        case Folded(table):
            return f"<details><summary>{table.title}</summary>\n\n{_table(table)}\n\n</details>"
        case Pair(left, right):
            return f"{_block(left)}\n\n{_block(right)}"
        case Figure():
            image = f"![{block.table.title}](figures/{block.name}.svg)"
            return f"{image}\n\n{block.caption}\n\n{_table(block.table)}"


def _table(table: Table) -> str:
    link = f"[{table.name}.csv](tables/{table.name}.csv)"
    if len(table.rows) > _MAX_ROWS:
        return f"{len(table.rows)} rows in {link}"
    return f"{to_markdown(table)}\n\n{link}"
