"""A headless Chromium spoken to over two pipes: no package, no driver, no open port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--font-render-hinting=none",
)
SECONDS = 60.0
"""Longest wait for one answer."""


def find_browser() -> str | None:
    """Return the path of a Chromium on this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page; a context manager."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = _pipe_above_stderr()
        self._read, from_browser = _pipe_above_stderr()
        arguments = [program, *ARGUMENTS, f"--user-data-dir={self._profile.name}", "about:blank"]
        # The protocol is read from descriptor 3 and written to 4.
        redirect = f'exec "$@" 3<&{to_browser} 4>&{from_browser} 2>/dev/null'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *arguments], pass_fds=(to_browser, from_browser)
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._last_id, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._write)  # the browser ends with its pipe
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result.

        Raises:
            RuntimeError: the browser refuses, dies or is silent.
        """
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._last_id:
                break
            self.events.append(found)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']['message']}")
        result: dict[str, Any] = found["result"]
        return result

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise RuntimeError(f"the browser said nothing for {SECONDS:.0f} s.")
            part = os.read(self._read, 2**20)
            if not part:
                raise RuntimeError("the browser ended.")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def open(self, page: Path, *, width: int, height: int, scheme: str) -> None:
        """Load a page at a width in CSS pixels, light or dark, and wait until it stands."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media="screen", features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page.

        Raises:
            RuntimeError: it throws.
        """
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def screenshot(self, clip: dict[str, float]) -> bytes:
        """Return a PNG of a rectangle of the whole page: x, y, width, height in CSS pixels."""
        found = self.call(
            "Page.captureScreenshot",
            format="png", captureBeyondViewport=True, clip={**clip, "scale": 1},
        )  # fmt: skip
        return base64.b64decode(found["data"])

    def print_pdf(self) -> bytes:
        """Return the page as it prints on A4."""
        self.call("Emulation.setEmulatedMedia", media="", features=[])
        inches = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(
            self.call("Page.printToPDF", printBackground=True, **inches)["data"]
        )

    def accessibility(self) -> list[dict[str, Any]]:
        """Return the nodes that a screen reader is given."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]


def _pipe_above_stderr() -> tuple[int, int]:
    """Return a pipe whose ends are not 3 or 4, which the browser gets them as."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
