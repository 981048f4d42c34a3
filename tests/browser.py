"""A real browser for tests: headless Chromium, spoken to over a pipe in the DevTools protocol.

`chromium()` gives one, or skips the test where there is none; with CLIPX_NEEDS_CHROMIUM=1 that is a failure instead.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_TIMEOUT_S = 120.0  # of one answer: other tests may have all cores
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # needs rights that containers lack
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--mute-audio",
)
# decoded, not only complete: a broken picture is complete, too
_PICTURES = """
(async () => {
  const all = [...document.images];
  await Promise.all(all.map(image => image.decode().catch(() => {})));
  return [all.length, all.filter(image => !image.naturalWidth).map(image => image.alt || image.src.slice(0, 80))];
})()
"""


@dataclass
class Visit:
    """What a browser met on a page."""

    errors: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, and what the page's own policy forbade."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for, the page's own first; without data within the page, and what the page's own policy
    forbade before it was asked for, which is among the errors."""
    num_pictures: int = 0
    broken: list[str] = field(default_factory=list)
    """What pictures that did not load are said to show."""
    text: str = ""
    """As a person reads it."""
    too_wide: bool = False
    """Whether the page as a whole has to be scrolled sideways."""
    value: Any = None
    """Of `script`."""
    png: bytes = b""
    """A picture of the page."""


class Browser:
    """A running Chromium."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._received = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def visit(
        self,
        page: Path | str,
        *,
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
        script: str | None = None,
        whole: bool = False,
    ) -> Visit:
        """Opens a file or an address and looks at it.

        Args:
            width: CSS pixels of the window.
            height: CSS pixels of the window.
            dark: whether the person prefers dark pages.
            script: JavaScript to evaluate when the page has loaded, before all else is read; a promise is waited for.
            whole: whether the picture shows all of the page and not the window alone.
        """
        address = page if isinstance(page, str) else page.absolute().as_uri()
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session=session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", size, session=session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]}, session=session)
        answer = self.call("Page.navigate", {"url": address}, session=session)
        assert "errorText" not in answer, f"{address}: {answer['errorText']}"
        self._wait_for("Page.loadEventFired")
        seen = Visit()
        if script is not None:
            seen.value = self.evaluate(script, session)
        seen.num_pictures, seen.broken = self.evaluate(_PICTURES, session)
        seen.text = self.evaluate("document.body.innerText", session)
        seen.too_wide = self.evaluate("document.documentElement.scrollWidth > window.innerWidth", session)
        shot = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            box = self.call("Page.getLayoutMetrics", session=session)["cssContentSize"]
            shot["clip"] = {"x": 0, "y": 0, "width": width, "height": box["height"], "scale": 1}
        seen.png = base64.b64decode(self.call("Page.captureScreenshot", shot, session=session)["data"])
        failed = [event["params"] for event in self._events if event["method"] == "Network.loadingFailed"]
        forbidden = {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}
        for event in self._events:
            if event.get("params", {}).get("requestId") not in forbidden:
                _note(seen, event["method"], event.get("params", {}))
        self.call("Target.closeTarget", {"targetId": target})
        return seen

    def evaluate(self, script: str, session: str) -> Any:
        """The value of an expression in the page."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", asked, session=session)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def call(self, method: str, params: dict[str, Any] | None = None, *, session: str = "") -> dict[str, Any]:
        """The answer to one command; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _wait_for(self, method: str) -> None:
        while all(event.get("method") != method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {_TIMEOUT_S:.0f} s"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._received += piece
        line, _, self._received = self._received.partition(b"\0")
        return json.loads(line)


def _note(seen: Visit, method: str, params: dict[str, Any]) -> None:
    if method == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        seen.errors.append(details.get("exception", {}).get("description") or details["text"])
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        seen.errors.append(" ".join(str(value.get("value", value.get("description"))) for value in params["args"]))
    elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        seen.errors.append(params["entry"]["text"])
    elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
        seen.requests.append(params["request"]["url"])


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own, ended with all it started; skips the test where Chromium is not installed."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        if os.environ.get("CLIPX_NEEDS_CHROMIUM", "0") not in ("", "0"):
            pytest.fail("CLIPX_NEEDS_CHROMIUM is set, and there is no chromium")
        pytest.skip("chromium is not installed")
    with tempfile.TemporaryDirectory(prefix="clipx-chromium-", ignore_cleanup_errors=True) as profile:
        their_in, to_browser = os.pipe()
        from_browser, their_out = os.pipe()
        # the browser wants its pipe at 3 and 4, where this process may have something else
        command = f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}'
        process = subprocess.Popen(
            ["bash", "-c", command, program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(their_in)
        os.close(their_out)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            try:
                process.wait(timeout=5)  # it ends when its pipe does
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
