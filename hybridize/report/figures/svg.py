"""SVG elements as text: deterministic, accessible, coloured only through CSS variables."""

import html
from collections.abc import Sequence

VARIABLES_LIGHT = (
    "--paper:#ffffff;--ink:#1b1f24;--muted:#59636e;--faint:#a3abb4;--grid:#dfe3e8;"
    "--edge:#1b1f24;--heat:#1d4c7f;--on-faint:#000000;--on-heat:#ffffff;"
    "--attention:#4477AA;--mamba:#CC6677;--attention-text:#2f5f8f;--mamba-text:#a8394d;"
)
VARIABLES_DARK = (
    "--paper:#14171c;--ink:#e8ebef;--muted:#a0a9b4;--faint:#6b7480;--grid:#2e343c;"
    "--edge:#ffffff;--heat:#7398bf;--on-faint:#ffffff;--on-heat:#000000;"
    "--attention:#4477AA;--mamba:#CC6677;--attention-text:#86b0dd;--mamba-text:#ec9aa8;"
)
STYLE = """
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
svg text{font-size:12px;fill:var(--ink)}
svg .tick,svg .note{fill:var(--muted);font-size:11px}
svg .name{fill:var(--muted);font-size:12px}
svg .strong{font-weight:600}
svg .attention-text{fill:var(--attention-text)}
svg .mamba-text{fill:var(--mamba-text)}
svg .on-attention{fill:#ffffff;font-weight:600}
svg .on-mamba{fill:#1b1f24;font-weight:600}
svg .on-paper{fill:var(--ink);font-weight:600}
svg .on-faint{fill:var(--on-faint)}
svg .on-heat{fill:var(--on-heat)}
svg .heat{fill:var(--heat)}
svg .attention{fill:var(--attention)}
svg .mamba{fill:var(--mamba)}
svg .grey{fill:var(--faint)}
svg .ink{fill:var(--ink)}
svg .hollow{fill:var(--paper);stroke:var(--faint);stroke-width:1}
svg .fresh{fill:none;stroke:var(--edge);stroke-width:2}
svg rect.small{stroke-width:1.25}
svg text.small{font-size:10px}
svg .planned{opacity:0.45}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .axis{stroke:var(--muted);stroke-width:1}
svg .rule{stroke:var(--muted);stroke-width:1;stroke-dasharray:4 3}
svg .whisker{stroke:var(--ink);stroke-width:1.5}
svg .gap{stroke:var(--paper);stroke-width:4}
svg .leader{stroke:var(--faint);stroke-width:1}
svg .error{stroke:var(--muted);stroke-width:1.5}
svg path{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .attention-line{stroke:var(--attention)}
svg .mamba-line{stroke:var(--mamba)}
svg .ink-line{stroke:var(--ink)}
svg .grey-line{stroke:var(--faint);stroke-width:1.25}
svg .dotted{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:1 5}
svg .theory{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 4}
svg .thin{stroke-width:1.25}
svg .ring{fill:var(--paper);stroke:var(--mamba);stroke-width:2}
""".strip()

Point = tuple[float, float]


def document(
    *, name: str, title: str, description: str, extent: tuple[float, float], parts: Sequence[str]
) -> str:
    """Wrap drawn parts into one SVG element of that width and height, with title and description.

    `name` makes the element ids, so it must be unique in a page.
    """
    width, height = extent
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" '
        f'width="{_n(width)}" height="{_n(height)}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>{"".join(parts)}</svg>'
    )


def standalone(svg: str) -> str:
    """Give an SVG its own light and dark style, so that it can stand outside the page."""
    style = (
        f"<style>svg{{{VARIABLES_LIGHT}}}\n"
        f"@media (prefers-color-scheme: dark){{svg{{{VARIABLES_DARK}background:var(--paper)}}}}\n"
        f"{STYLE}</style>"
    )
    head, mark, rest = svg.partition("</desc>")
    return f"{head}{mark}{style}{rest}\n"


def rect(x: float, y: float, width: float, height: float, css: str) -> str:
    """Draw a rectangle from its upper left corner."""
    return (
        f'<rect class="{css}" x="{_n(x)}" y="{_n(y)}" '
        f'width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"/>'
    )


def line(start: Point, end: Point, css: str) -> str:
    """Draw a straight line."""
    return (
        f'<line class="{css}" x1="{_n(start[0])}" y1="{_n(start[1])}" '
        f'x2="{_n(end[0])}" y2="{_n(end[1])}"/>'
    )


def path(points: Sequence[Point], css: str) -> str:
    """Draw a line through points."""
    if not points:
        return ""
    steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
    return f'<path class="{css}" d="M{steps}"/>'


def circle(x: float, y: float, radius: float, css: str) -> str:
    """Draw a dot."""
    return f'<circle class="{css}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>'


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """Write text with its baseline at y; anchor is start, middle or end."""
    shown = f' class="{css}"' if css else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text{shown} x="{_n(x)}" y="{_n(y)}"{placed}>{html.escape(content)}</text>'


def text_width(content: str, font_px: float = 12) -> float:
    """Estimate the width of bold text in pixels, a little wide so that nothing is cut."""
    narrow = sum(character in "iljt.,:;|'! ()" for character in content)
    return font_px * (0.7 * (len(content) - narrow) + 0.42 * narrow)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
