"""Write a report folder: the page, its Markdown twin, the figures and a CSV for every table."""

from collections.abc import Sequence
from pathlib import Path

from hybridize.core.artifacts import RunFolder, write_text
from hybridize.core.errors import RunError
from hybridize.report.blocks import Report
from hybridize.report.compare import comparison_report
from hybridize.report.figures import chart, svg
from hybridize.report.markdown import render_markdown
from hybridize.report.page import render_html
from hybridize.report.run_data import read_run
from hybridize.report.sections import run_report
from hybridize.report.tables import to_csv

FORMATS = ("html", "md")


def build_report(run_folder: Path | str, formats: Sequence[str] = FORMATS) -> Path:
    """Build the report of a run, finished or not, under its `report/`; return the page's path.

    Raises:
        RunError: not a run folder, a damaged file in it, or an unknown format.
    """
    run = read_run(run_folder)
    return write_report(run_report(run), RunFolder(run.path).report, formats)


def build_comparison(
    run_folders: Sequence[Path | str], out: Path | str, formats: Sequence[str] = FORMATS
) -> Path:
    """Build a page that puts several runs side by side, under `out`; return its path.

    Raises:
        RunError: fewer than two runs, or one of them is not a run folder.
    """
    if len(run_folders) < 2:
        raise RunError("A comparison needs at least two run folders; give more, or build a report.")
    runs = [read_run(folder) for folder in run_folders]
    return write_report(comparison_report(runs), Path(out), formats)


def write_report(report: Report, out: Path, formats: Sequence[str]) -> Path:
    """Write all files of a report under `out`; return `index.html`, or `report.md` without it.

    Raises:
        RunError: no format, or one that is not known.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise RunError(
            f"report format {', '.join(unknown) or '(none)'} is not known. "
            f"Choose from {', '.join(FORMATS)}."
        )
    for table in report.tables():
        write_text(out / "tables" / f"{table.name}.csv", to_csv(table))
    for figure in report.figures():
        drawn = svg.standalone(figure.svg(chart.WIDE))
        write_text(out / "figures" / f"{figure.name}.svg", drawn)
    if "md" in formats:
        write_text(out / "report.md", render_markdown(report))
    if "html" in formats:
        write_text(out / "index.html", render_html(report))
    return out / ("index.html" if "html" in formats else "report.md")
