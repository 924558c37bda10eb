"""The page of ``vos-run ui`` in a real browser: mark, follow, correct, undo, export; small and large, two tabs.

They run where Debian's Chromium and Playwright are installed. One server and one browser serve all of them.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.fakes.media import serving
from tests.fakes.programs import program
from vosrt.types import U8Array

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, COUNT = 240, 160, 8
# Without a GPU, what Chromium does in the background (updates, synchronisation, raster work for a GPU that it emulates)
# takes more of a busy machine than the page does; on a closed network its connections fail one after the other.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-gpu-watchdog",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
POLL_MS = (
    100  # Playwright looks at every drawn frame otherwise, which takes a quarter of a processor and may never come
)


def scene(t: int) -> tuple[U8Array, U8Array]:
    """A red disc that moves to the right before grey; picture and truth."""
    image = np.random.default_rng(3).integers(150, 190, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(truth, (60 + 4 * t, 80), 32, 1, -1)
    image[truth == 1] = (40, 40, 220)
    return image, truth


@pytest.fixture(scope="module")
def browser(skip_or_fail: Callable[..., None]) -> Iterator[Any]:
    """Chromium, as Debian packages it."""
    program = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_or_fail("Playwright is not installed: pip install playwright", required="browser")
        return
    if program is None:
        skip_or_fail("Chromium is not installed: apt-get install chromium", required="browser")
        return
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_fake_bundle: Path) -> Iterator[str]:
    """The address that the command prints; it ends when this module does."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "frames").mkdir()
    for t in range(COUNT):
        cv2.imwrite(str(folder / "frames" / f"{t:03d}.png"), scene(t)[0])
    command = program("ui", "--bundle", str(shared_fake_bundle), "--engine", "fake", "--json", "--no-browser")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["address"]
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
        assert code == 0  # Ctrl-C is how a page ends


@pytest.fixture
def address(server: str) -> str:
    """The address of a page that shows the scene as if it had just been opened."""
    base, _, token = server.partition("#")
    for path, body in (("take", b""), ("open", b'{"path": "frames"}')):
        request = urllib.request.Request(f"{base}api/{path}", body, {"X-Vosrt-Token": token})
        for _ in range(50):  # the tab of the test before may still own the clip for a moment
            try:
                urllib.request.urlopen(request, timeout=30).close()
                break
            except urllib.error.HTTPError as error:
                if error.code != 409:
                    raise
                time.sleep(0.1)
    return server


class Tab:
    """A tab of the browser with the page in it."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 800, **more: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, **more)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(address)

    def wait(self, expression: str, value: Any = None) -> None:
        """Wait until an expression of the page is true."""
        self.page.wait_for_function(expression, arg=value, polling=POLL_MS)

    def _hear(self, line: Any) -> None:
        if line.type == "error":
            self.faults.append(line.text)

    def ready(self) -> Tab:
        """Wait until the clip is open and its frame is drawn."""
        self.position(1)
        self.wait(
            "() => { const c = document.getElementById('picture'); const d = c.getContext('2d').getImageData("
            "c.width / 2, c.height / 2, 1, 1).data; return d[3] > 0; }"
        )
        return self

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the frame is in the window."""
        box = self.page.locator("#picture").bounding_box()
        margin = 16 if box["width"] > 600 else 0
        scale = min((box["width"] - 2 * margin) / WIDTH, (box["height"] - 2 * margin) / HEIGHT)
        left, top = box["x"] + (box["width"] - WIDTH * scale) / 2, box["y"] + (box["height"] - HEIGHT * scale) / 2
        return left + x * scale, top + y * scale

    def click(self, x: float, y: float, **more: Any) -> None:
        self.page.mouse.click(*self.place(x, y), **more)

    def drag(self, *points: tuple[float, float]) -> None:
        self.page.mouse.move(*self.place(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.place(*point), steps=6)
        self.page.mouse.up()

    def rows(self) -> int:
        """How many frames are known to show the object, by what a reader of the page is told."""
        return int(self.page.locator("#objects li").count())

    def says(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.wait("text => document.body.innerText.includes(text)", text)

    def position(self, frame: int) -> None:
        self.wait("text => document.getElementById('position').textContent === text", f"{frame} / {COUNT}")

    def export(self, folder: Path) -> zipfile.ZipFile:
        """Export with the dialog and open what is downloaded."""
        self.page.keyboard.press("e")
        with self.page.expect_download() as download:
            self.page.locator("#export-dialog button.primary").click()
        path = folder / "result.zip"
        download.value.save_as(path)
        return zipfile.ZipFile(path)

    def close(self) -> None:
        assert not self.faults
        self.page.close()


def masks(archive: zipfile.ZipFile) -> list[U8Array]:
    from PIL import Image

    names = sorted(name for name in archive.namelist() if name.startswith("masks/"))
    return [np.asarray(Image.open(archive.open(name))) for name in names]


def iou(found: U8Array, truth: U8Array) -> float:
    return float(((found > 0) & (truth > 0)).sum() / ((found > 0) | (truth > 0)).sum())


def test_mark_follow_correct_and_download(browser: Any, address: str, tmp_path: Path) -> None:
    tab = Tab(browser, address).ready()
    tab.click(60, 80)
    tab.says("A reference")
    tab.page.keyboard.press("f")
    tab.says(f"Followed through {COUNT - 1} frames")
    tab.position(COUNT)  # the page goes along with what is followed
    tab.says("Found by following")
    # A correction in the middle: a brush stroke beside the disc, which is followed to the end as well.
    for _ in range(4):
        tab.page.keyboard.press("ArrowLeft")
    tab.position(4)
    tab.page.keyboard.press("r")
    tab.drag((180, 140), (220, 140))
    tab.says("A reference")
    tab.page.keyboard.press("f")
    tab.says(f"Followed through {COUNT - 4} frames")
    with tab.export(tmp_path) as archive:
        found = masks(archive)
        assert "overlay.mp4" in archive.namelist()
    assert len(found) == COUNT
    for t in (0, 2):
        assert iou(found[t], scene(t)[1]) > 0.7
        assert not found[t][140, 200]
    assert found[3][140, 200] == 1
    tab.page.keyboard.press("Control+z")  # the second run
    tab.page.keyboard.press("Control+z")  # the stroke
    tab.says("Found by following")
    with tab.export(tmp_path) as archive:
        assert not masks(archive)[3][140, 200]
    tab.close()


def test_boxes_polygons_names_and_removal(browser: Any, address: str) -> None:
    tab = Tab(browser, address).ready()
    tab.page.keyboard.press("b")
    tab.drag((20, 40), (100, 120))
    tab.says("100 %")
    assert tab.rows() == 1
    tab.page.keyboard.press("n")
    tab.wait("() => document.querySelectorAll('#objects li').length === 2")
    tab.page.keyboard.press("p")
    for x, y in ((150, 20), (200, 20), (200, 60), (150, 20)):
        tab.click(x, y)
    tab.wait("() => [...document.querySelectorAll('#objects .state')].every(each => each.textContent === '100 %')")
    name = tab.page.locator("#objects .name").nth(1)
    name.fill("Kite")
    name.press("Enter")
    tab.wait("() => document.querySelectorAll('#objects .name')[1].value === 'Kite'")
    tab.page.locator("#objects li").nth(1).hover()
    tab.page.locator("#objects .delete").nth(1).click()
    tab.wait("() => document.querySelectorAll('#objects li').length === 1")
    tab.page.keyboard.press("Control+z")
    tab.wait("() => document.querySelectorAll('#objects li').length === 2")
    tab.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1920, 1080)])
def test_nothing_overflows_and_everything_is_reached_on_every_screen(
    browser: Any, address: str, width: int, height: int
) -> None:
    tab = Tab(browser, address, width, height, has_touch=width < 1000).ready()
    if width < 1000:
        tab.page.touchscreen.tap(*tab.place(60, 80))
    else:
        tab.click(60, 80)
    tab.page.wait_for_selector("#follow:not([disabled])")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for control in ("#follow", "#play", "#export", "#undo", "#accept", "[data-tool=why]", "#minus", "#timeline"):
        box = tab.page.locator(control).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width + 0.5
        assert box["y"] + box["height"] <= height + 0.5
        assert min(box["width"], box["height"]) >= (34 if width < 1000 else 28)  # a finger, a mouse
    tab.close()


def test_the_timeline_and_the_keys_move_through_the_clip(browser: Any, address: str) -> None:
    tab = Tab(browser, address).ready()
    tab.page.keyboard.press("End")
    tab.position(COUNT)
    tab.page.keyboard.press("Home")
    tab.position(1)
    box = tab.page.locator("#timeline").bounding_box()
    tab.page.mouse.click(box["x"] + box["width"] * 4.5 / COUNT, box["y"] + 20)
    tab.position(5)
    tab.page.keyboard.press("Space")
    tab.position(COUNT)
    tab.close()


def test_a_second_tab_waits_until_it_takes_over(browser: Any, address: str) -> None:
    first = Tab(browser, address).ready()
    second = Tab(browser, address).ready()
    second.page.wait_for_selector("#other[open]")
    second.page.locator("#take").click()
    second.page.wait_for_selector("#other:not([open])", state="hidden")
    first.page.wait_for_selector("#other[open]")
    second.click(60, 80)
    second.says("A reference")
    second.close()
    first.page.close()


def test_without_the_token_the_page_says_what_is_missing(browser: Any, address: str) -> None:
    tab = Tab(browser, address.partition("#")[0])
    tab.page.wait_for_selector("#locked[open]")
    tab.page.close()


def test_a_file_is_uploaded_and_opened(browser: Any, address: str) -> None:
    from vosrt.cli.demo import CLIP

    tab = Tab(browser, address).ready()
    tab.page.keyboard.press("o")
    tab.page.locator("#file").set_input_files(str(CLIP))
    tab.wait("() => document.getElementById('clip-name').textContent === 'demo.mp4'")
    tab.page.wait_for_selector("#welcome", state="hidden")
    tab.close()


def test_a_pixel_is_asked_why(browser: Any, address: str) -> None:
    tab = Tab(browser, address).ready()
    tab.click(60, 80)
    tab.says("A reference")
    tab.page.keyboard.press("f")
    tab.says(f"Followed through {COUNT - 1} frames")
    tab.page.keyboard.press("w")
    tab.click(60 + 4 * (COUNT - 1), 80)
    tab.says("% sure")
    vote = tab.page.locator("#why-votes button").first
    number = int(vote.inner_text().split()[1])
    assert 1 <= number < COUNT
    vote.click()
    tab.position(number)
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("#why", state="hidden")
    tab.close()


@contextmanager
def filmed_by_http(folder: Path) -> Iterator[str]:
    def film(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for count in range(100_000):
            data = cv2.imencode(".jpg", scene(abs(count % 20 - 10))[0])[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            handler.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(0.1)

    with serving(film) as host:
        yield f"http://{host}/camera"


@contextmanager
def filmed_by_rtsp(folder: Path) -> Iterator[str]:
    live = importlib.import_module("benchmarks.stream.live")
    (folder / "pictures").mkdir()
    frames = [scene(abs(count % 20 - 10))[0] for count in range(20)]
    camera = live.Camera(live.find_python(), frames, folder / "pictures", fps=10, size=f"{WIDTH}x{HEIGHT}")
    try:
        yield camera.address
    finally:
        camera.close()


@pytest.fixture(params=["http", "rtsp"])
def camera(request: pytest.FixtureRequest, skip_or_fail: Callable[..., None], tmp_path: Path) -> Iterator[str]:
    """The address of a camera that films the scene, forward and back."""
    if request.param == "rtsp":
        if not (REPOSITORY / "benchmarks").is_dir():
            pytest.skip("no benchmarks beside the tests")
        if importlib.import_module("benchmarks.stream.live").find_python() is None:
            skip_or_fail("GStreamer's RTSP server is not installed; see test_live_camera.py", required="rtsp")
    with (filmed_by_rtsp if request.param == "rtsp" else filmed_by_http)(tmp_path) as address:
        yield address


@pytest.mark.parametrize("width", [390, 1280])
def test_a_live_picture_is_frozen_clicked_and_followed(
    browser: Any, camera: str, shared_fake_bundle: Path, tmp_path: Path, width: int
) -> None:
    command = program("ui", camera, "--bundle", str(shared_fake_bundle), "--engine", "fake", "--json")
    with subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        try:
            tab = Tab(browser, json.loads(process.stdout.readline())["address"], width)
            tab.wait("() => document.getElementById('live').getAttribute('aria-pressed') === 'true'")
            tab.wait(
                "() => { const c = document.getElementById('picture'); const d = c.getContext('2d').getImageData("
                "c.width / 2, c.height / 2, 1, 1).data; return d[3] > 0; }"
            )
            tab.click(80, 80)  # where the disc always is
            tab.wait("() => document.getElementById('live').getAttribute('aria-pressed') === 'false'")
            tab.page.wait_for_selector("#follow:not([disabled])")
            tab.page.keyboard.press("f")
            tab.says(" ms behind")
            for control in ("#stop", "#live"):
                box = tab.page.locator(control).bounding_box()
                assert box["x"] + box["width"] <= width + 0.5
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
            tab.page.keyboard.press("Escape")
            tab.wait("() => /Followed .* live/.test(document.body.innerText)")
            tab.page.keyboard.press("l")
            tab.wait("() => document.getElementById('live').getAttribute('aria-pressed') === 'true'")
            tab.close()
        finally:
            process.send_signal(signal.SIGINT)
            told = json.loads(process.stdout.read())["live"]
        assert 0 < told["p50_ms"] <= told["p95_ms"]
