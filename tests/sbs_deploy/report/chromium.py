"""A page in headless Chromium, over its own DevTools protocol (chromedevtools.github.io/devtools-protocol)."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from typing_extensions import Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60.0
LIMIT_BYTES = 8_000_000


def chromium_path() -> str:
    """The browser; skips where there is none, except in CI, which installs one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium: see .ci/run")
        pytest.skip("needs Chromium (apt-get install chromium)")
    return found


class Tab:
    """One tab, with everything it complained about and asked the network for."""

    def __init__(self, url: str) -> None:
        import websocket

        self.socket = websocket.create_connection(url, timeout=PATIENCE_S, suppress_origin=True)
        self.ids = itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and take down the events until its answer."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    def open(self, page: Path, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """Load a file anew and wait until it has."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.complaints.clear()
        self.requests.clear()
        self.loaded = False
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not self.loaded:
            self._receive()
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, height: int | None = None) -> None:
        """The whole page, or its beginning, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv())
        about, what = message.get("method"), message.get("params", {})
        if about == "Page.loadEventFired":
            self.loaded = True
        elif about == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif about == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"]))
        elif about == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(what["args"]))
        elif about == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.complaints.append(what["entry"]["text"])
        return message


def assert_sound(tab: Tab, page: Path, charts: int | None = None) -> None:
    """A page that is open: small, no complaint or request, no wider than the screen, every chart drawn in its place."""
    assert page.stat().st_size < LIMIT_BYTES
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.absolute().as_uri()]
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    drawn = tab.run(
        "[...document.querySelectorAll('.chart')].map((one) => [one.id, one.querySelectorAll('.main-svg').length,"
        " one.scrollWidth <= one.clientWidth + 1, one.querySelectorAll('.trace, .point, .hm, .bars').length])"
    )
    assert len(drawn) == charts if charts is not None else drawn
    assert all(layers >= 2 and fits and marks for _, layers, fits, marks in drawn), drawn


@contextlib.contextmanager
def open_tab() -> Iterator[Tab]:
    """A browser of its own, gone afterwards with its profile."""
    command = [
        chromium_path(),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with Tab(_first_page(Path(profile), browser)) as tab:
                yield tab
        finally:
            browser.terminate()
            browser.wait(PATIENCE_S)


def _first_page(profile: Path, browser: "subprocess.Popen[bytes]") -> str:
    """The socket of the tab that the browser opened."""
    import urllib.request

    told = profile / "DevToolsActivePort"
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and browser.poll() is None:
        if told.is_file() and (lines := told.read_text().splitlines()):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json") as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    pytest.fail(f"Chromium did not start (exit status {browser.poll()})")
