"""Open a report in a headless Chromium as readers would: `python scripts/look_at_report.py PAGE`.

At two widths, light and dark, it looks for text that overlaps, is cut, small or faint, for a page
wider than its window, for console errors and for anything fetched; it reads what a screen reader
is given, and writes a PNG of every section and a PDF under `--out`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ is None:
    sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.headless import Browser, find_browser

WIDTHS = {"wide": 1280, "phone": 390}
SCHEMES = ("light", "dark")
HEIGHT = 900
LOOK = Path(__file__).with_suffix(".js")
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => { one.open = true })"
SECTIONS = """
[...document.querySelectorAll('header, section')].map((one) => {
  const box = one.getBoundingClientRect();
  return [one.id || 'first', box.top + scrollY, box.bottom + scrollY];
})
"""


def look(page: Path, program: str, out: Path | None = None) -> list[str]:
    """Return what is wrong with the page in a browser; an empty list if nothing is.

    Args:
        page: an `index.html`.
        program: path of a Chromium.
        out: folder for the pictures; None takes none.
    """
    found: list[str] = []
    with Browser(program) as browser:
        for place, width in WIDTHS.items():
            for scheme in SCHEMES:
                browser.open(page, width=width, height=HEIGHT, scheme=scheme)
                name = f"{place}-{scheme}"
                found += [f"{name}: {text}" for text in browser.evaluate(LOOK.read_text())]
                if out is not None:
                    _take_pictures(browser, out, name, width)
                browser.evaluate(OPEN_ALL)
                seen = set(found)
                opened = (f"{name}: {text}" for text in browser.evaluate(LOOK.read_text()))
                found += [f"{text} (opened)" for text in opened if text not in seen]
                found += [f"{name}: {text}" for text in list_noise(browser.events)]
        found += list_unnamed(browser.accessibility())
        browser.open(page, width=WIDTHS["wide"], height=HEIGHT, scheme="dark")
        pdf = browser.print_pdf()
        if out is not None:
            (out / "print.pdf").write_bytes(pdf)
    return found


def list_noise(events: Sequence[dict[str, Any]]) -> Iterator[str]:
    """List what was said to the console, and what was fetched beside the page itself."""
    for event in events:
        method, values = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = values["request"]["url"]
            if values.get("type") != "Document" and not url.startswith("data:"):
                yield f"it fetches {url}"
        elif method == "Runtime.exceptionThrown":
            yield f"script error: {values['exceptionDetails'].get('text')}"
        elif method == "Runtime.consoleAPICalled":
            yield f"console.{values['type']}"
        elif method == "Log.entryAdded":
            yield f"console: {values['entry']['text']}"


def list_unnamed(nodes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """List pictures and tables that a screen reader cannot name, and headings out of order."""
    level = 0
    for node in nodes:
        role = str(node.get("role", {}).get("value", "")).lower()
        name = str(node.get("name", {}).get("value", "")).strip()
        described = str(node.get("description", {}).get("value", "")).strip()
        if role in ("img", "image", "graphics-document") and not (name and described):
            yield f"a picture is read as {name!r}, {described!r}"
        if role in ("table", "figure", "region", "navigation") and not name:
            yield f"a {role} has no name"
        if role == "heading":
            values = {one["name"]: one["value"]["value"] for one in node.get("properties", ())}
            if values["level"] > level + 1:
                yield f"heading {name!r} of level {values['level']} follows one of level {level}"
            level = values["level"]


def _take_pictures(browser: Browser, out: Path, name: str, width: int) -> None:
    """Write a PNG of each section; what stands before the first is one with the header."""
    out.mkdir(parents=True, exist_ok=True)
    parts = browser.evaluate(SECTIONS)
    first = parts[1][1] if len(parts) > 1 else parts[0][2]
    spans = [(parts[0][0], 0.0, first), *((part[0], part[1], part[2]) for part in parts[1:])]
    for number, (section, top, bottom) in enumerate(spans):
        clip = {"x": 0.0, "y": top, "width": float(width), "height": max(1.0, bottom - top)}
        picture = browser.screenshot(clip)
        (out / f"{name}-{number:02d}-{section}.png").write_bytes(picture)


def main() -> int:
    """Look at the pages that are named; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path, nargs="+", help="index.html of a report")
    parser.add_argument("--out", type=Path, help="folder for pictures and PDF, one for each page")
    options = parser.parse_args()
    program = find_browser()
    if program is None:
        print("no Chromium is on PATH: install one (apt install chromium).", file=sys.stderr)
        return 3
    wrong = 0
    for page in options.page:
        out = options.out and options.out / page.resolve().parent.name
        for text in look(page, program, out):
            print(f"{page}: {text}")
            wrong += 1
    print(f"{wrong} findings", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
