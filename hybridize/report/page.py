"""A report as one self-contained HTML page: no network, no scripts, light and dark, printable."""

import html

from hybridize.report.blocks import (
    Block,
    Caution,
    Figure,
    Folded,
    Missing,
    Pair,
    Paragraph,
    Report,
    Section,
    Verbatim,
)
from hybridize.report.figures import chart, svg
from hybridize.report.tables import Table, to_html

_STYLE = f"""
:root{{color-scheme:light dark;{svg.VARIABLES_LIGHT}}}
@media (prefers-color-scheme: dark){{:root{{{svg.VARIABLES_DARK}}}}}
@media print{{:root{{color-scheme:light;{svg.VARIABLES_LIGHT}}}}}
*{{box-sizing:border-box}}
.skip{{position:absolute;left:-999px}}
.skip:focus{{left:16px;top:8px;background:var(--paper);padding:4px 8px}}
body{{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}}
main,header{{max-width:888px;margin:0 auto;padding:0 24px}}
header{{padding-top:24px}}
main{{padding-bottom:24px}}
h1{{font-size:30px;line-height:1.2;margin:0 0 4px}}
h2{{font-size:22px;line-height:1.3;margin:52px 0 12px;padding-top:14px;
border-top:1px solid var(--grid)}}
p{{margin:0 0 12px;max-width:44em}}
a{{color:var(--attention-text)}}
.verdict{{font-size:19px;margin:0 0 14px}}
nav{{font-size:14px;margin:0 0 20px;display:flex;flex-wrap:wrap;gap:2px 16px}}
figure{{margin:0 0 24px;min-width:0}}
figure svg{{display:block;width:100%;height:auto}}
figure .narrow{{display:none}}
figcaption{{font-size:14px;color:var(--muted);margin:8px 0 4px;max-width:52em}}
details{{font-size:14px;margin:2px 0 14px}}
summary{{cursor:pointer;color:var(--attention-text)}}
summary:focus-visible,a:focus-visible{{outline:2px solid var(--attention-text);outline-offset:2px}}
.scroll{{overflow-x:auto;margin:4px 0 4px}}
table{{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}}
caption{{text-align:left;font-weight:600;padding:10px 0 0}}
caption span{{display:block;max-width:min(840px,100vw - 32px)}}
table.dense{{font-size:13px}}
table.dense th,table.dense td{{padding-right:9px}}
table.dense thead th{{min-width:0}}
th,td{{padding:4px 14px 4px 0;border-bottom:1px solid var(--grid);text-align:left;
vertical-align:top}}
thead th{{vertical-align:bottom}}
thead th{{min-width:5em;color:var(--muted);font-weight:500;line-height:1.25}}
tbody th{{font-weight:600;white-space:nowrap}}
#table-answers{{width:100%;table-layout:fixed}}
#table-answers tbody th{{white-space:normal;width:25%}}
td.number,th.number{{text-align:right;padding-left:6px}}
td.number{{white-space:nowrap}}
code,pre{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px}}
td code{{white-space:nowrap}}
pre{{overflow-x:auto;background:color-mix(in srgb,var(--grid) 40%,transparent);padding:12px;
border-radius:4px;line-height:1.4}}
.csv{{font-size:13px;margin:0 0 20px}}
.missing{{color:var(--muted);border-left:3px solid var(--grid);padding-left:12px}}
.caution{{border-left:3px solid var(--mamba);padding-left:12px}}
{svg.STYLE}
@media (min-width:900px){{
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:0 24px;align-items:start}}
.pair .wide{{display:none}}.pair .narrow{{display:block}}
}}
@media (max-width:700px){{
main,header{{padding-left:16px;padding-right:16px}}h1{{font-size:25px}}.verdict{{font-size:17px}}
figure .wide{{display:none}}figure .narrow{{display:block}}
}}
@media print{{
main,header{{max-width:none;padding:0}}nav,.skip{{display:none}}body{{font-size:11pt}}
figure,tr{{break-inside:avoid}}h2,caption{{break-after:avoid}}
figure .wide{{display:block}}figure .narrow{{display:none}}
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:0 24px}}
.pair .wide{{display:none}}.pair .narrow{{display:block}}
.scroll{{overflow:visible}}pre{{white-space:pre-wrap}}
}}
""".strip()


def render_html(report: Report) -> str:
    """Write the whole page."""
    links = "".join(
        f'<a href="#{section.anchor}">{html.escape(section.heading)}</a>'
        for section in report.sections
    )
    first = "".join(_block(block) for block in report.first)
    sections = "".join(_section(section) for section in report.sections)
    name = html.escape(report.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}: hybridize report</title><style>{_STYLE}</style></head>\n"
        '<body><a class="skip" href="#first">To the outcome</a>'
        f'<header><h1>{name}</h1><p class="verdict">{html.escape(report.verdict)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header>\n<main id="first">{first}{sections}'
        "</main></body></html>\n"
    )


def _section(section: Section) -> str:
    blocks = "".join(_block(block) for block in section.blocks)
    heading = html.escape(section.heading)
    return f'<section id="{section.anchor}"><h2>{heading}</h2>\n{blocks}</section>\n'


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>\n"
        case Missing(text):
            return f'<p class="missing">{html.escape(text)}</p>\n'
        case Caution(text):
            warned = f"<strong>Warning.</strong> {html.escape(text)}"
            return f'<p class="caution" role="note">{warned}</p>\n'
        case Verbatim(title, text):
            return (
                f"<details><summary>{html.escape(title)}</summary>"
                f"<pre>{html.escape(text)}</pre></details>\n"
            )
        case Table():
            return f"{to_html(block)}{_csv_link(block)}\n"
        case Folded(table):
            inside = f"{to_html(table)}{_csv_link(table)}"
            return f"<details><summary>{html.escape(table.title)}</summary>{inside}</details>\n"
        case Pair(left, right):
            return f'<div class="pair">{_figure(left)}{_figure(right)}</div>\n'
        case Figure():
            return _figure(block)


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="figure-{figure.name}" aria-label="{html.escape(figure.table.title)}">'
        f'<div class="wide">{figure.svg(chart.WIDE)}</div>'
        f'<div class="narrow">{figure.svg(chart.NARROW)}</div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption>"
        f"<details><summary>Numbers of this figure</summary>{to_html(figure.table)}"
        f"{_csv_link(figure.table)}</details></figure>\n"
    )


def _csv_link(table: Table) -> str:
    return f'<p class="csv"><a href="tables/{table.name}.csv">{table.name}.csv</a></p>'
