"""The report in a real headless Chromium: nothing is loaded, nothing fails, nothing overflows, the plots are drawn."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

from reports import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
DRAWN = "document.documentElement?.dataset.drawn === 'yes'"


class Page:
    """One tab, driven through the DevTools protocol."""

    def __init__(self, port: int, target: str) -> None:
        url = f"ws://127.0.0.1:{port}/devtools/page/{target}"
        self.socket = websocket.create_connection(url, timeout=30, suppress_origin=True)
        self.numbers = itertools.count(1)
        self.events: list[dict] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, file: Path, width: int, height: int, scheme: str) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.theme(scheme)
        self.events.clear()
        self.send("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + 30
        while not self.evaluate(DRAWN):
            assert time.monotonic() < deadline, self.problems()
            time.sleep(0.1)

    def theme(self, scheme: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def problems(self) -> list:
        """Exceptions, failed assertions, and everything the console or the browser's log complained about."""
        found = [e["params"]["exceptionDetails"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        found += [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        found += [
            e["params"]
            for e in self.events
            if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] in {"error", "warning", "assert"}
        ]
        return found

    def requested(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                yield _connected(Path(profile) / "DevToolsActivePort")
            finally:
                process.terminate()
                process.wait(timeout=20)


def _connected(announced: Path) -> Page:
    deadline = time.monotonic() + 40
    while not (announced.exists() and len(announced.read_text().split()) == 2):
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.1)
    port, path = announced.read_text().split()
    browser = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=30, suppress_origin=True)
    browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    while (reply := json.loads(browser.recv())).get("id") != 1:
        pass
    browser.close()
    target = next(t["targetId"] for t in reply["result"]["targetInfos"] if t["type"] == "page")
    return Page(int(port), target)


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page
        page.socket.close()


@pytest.fixture(scope="module")
def report(study_folder) -> Path:
    return html.write(study_folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 800), (1440, 900)])
def test_the_report_opens_without_errors_requests_or_overflow(page, report, width, height, scheme):
    page.open(report, width, height, scheme)

    assert page.problems() == []
    assert [url for url in page.requested() if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.evaluate("document.querySelectorAll('[data-figure]').length")
    assert plots >= 12
    assert page.evaluate("document.querySelectorAll('[data-figure] .main-svg').length") >= plots
    wide = (
        "[...document.querySelectorAll('.main-svg')].filter(s => s.getBoundingClientRect().right > innerWidth).length"
    )
    assert page.evaluate(wide) == 0


def test_the_plots_follow_the_theme(page, report):
    ink = "getComputedStyle(document.querySelector('.ytick text')).fill"
    page.open(report, 1440, 900, "light")
    light = page.evaluate(ink)
    page.theme("dark")
    page.evaluate("new Promise(done => setTimeout(done, 500))")

    assert page.evaluate(ink) != light
    assert page.problems() == []


def test_the_deployment_can_be_copied(page, report):
    page.open(report, 1440, 900, "light")
    page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.send("Page.bringToFront")
    page.evaluate("document.querySelector('[data-copies]').click()")
    page.evaluate("new Promise(done => setTimeout(done, 300))")

    assert page.evaluate("document.querySelector('[data-copies]').textContent") in {"Copied", "Selected"}


def test_it_prints_on_light_paper_with_plots_that_fit(page, report):
    page.open(report, 1440, 900, "dark")
    page.evaluate("""addEventListener("beforeprint", () => {
        window.inPrint = {
            widest: Math.max(...[...document.querySelectorAll(".main-svg")].map((plot) => plot.clientWidth)),
            paper: getComputedStyle(document.documentElement).getPropertyValue("--paper").trim(),
            closed: document.querySelectorAll("details:not([open])").length,
        };
    })""")
    printed = page.send("Page.printToPDF", printBackground=True)

    assert len(base64.b64decode(printed["data"])) > 50_000
    assert page.evaluate("window.inPrint") == {"widest": 660, "paper": "#fff", "closed": 0}
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert page.problems() == []


def test_hostile_text_neither_runs_nor_breaks_the_layout(page, synthetic, tmp_path):
    attack = "</script><script>window.owned=1</script><img src=x onerror='window.owned=2'><b>" + "x" * 300
    report = html.write(synthetic.make_study(tmp_path / "hostile", hostile=attack))
    page.open(report, 360, 800, "light")

    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.problems() == []
