"""Pictures of the page of ``vos-run ui``: two balloons are boxed, followed, corrected and exported in a real browser.

    python -m benchmarks.scenes.page                 # writes results/page.jpg
    python -m benchmarks.scenes.page -o FOLDER       # and a picture of every step

It needs Playwright and Chromium.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import RESULTS, parser_of
from vosrt.cli.demo import CLIP, SIZE

PROGRAM = "import sys; from vosrt.cli.run import main; sys.exit(main())"
WIDTH, HEIGHT, MARGIN = 512, 288, 16  # of the clip; around it on the page
LARGE, SMALL = {"width": 1280, "height": 760}, {"width": 390, "height": 760}
BALLOONS = ((66, 80, 124, 166), (332, 52, 80, 106))
PATIENCE_MS = 300_000


def place(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the clip is in the window."""
    box = page.locator("#picture").bounding_box()
    scale = min((box["width"] - 2 * MARGIN) / WIDTH, (box["height"] - 2 * MARGIN) / HEIGHT)
    return (
        box["x"] + (box["width"] - WIDTH * scale) / 2 + x * scale,
        box["y"] + (box["height"] - HEIGHT * scale) / 2 + y * scale,
    )


def waits(page: Any, text: str) -> None:
    """Wait until the page shows a text."""
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=PATIENCE_MS)


def tour(page: Any, folder: Path) -> None:
    """Mark, follow, correct, export; a picture of each."""

    def keep(name: str) -> None:
        page.wait_for_timeout(1500)
        page.screenshot(path=folder / f"{name}.png")

    page.wait_for_function("() => document.getElementById('position').textContent.endsWith('/ 60')")
    page.keyboard.press("b")
    for number, (x, y, width, height) in enumerate(BALLOONS):
        if number:
            page.keyboard.press("n")
            page.wait_for_function("() => document.querySelectorAll('#objects li').length === 2")
        page.mouse.move(*place(page, x, y))
        page.mouse.down()
        page.mouse.move(*place(page, x + width, y + height), steps=8)
        page.mouse.up()
        page.wait_for_function(
            "n => [...document.querySelectorAll('#objects .state')].filter(each => each.textContent).length > n",
            arg=number,
            timeout=PATIENCE_MS,
        )
    for number, name in enumerate(("Red balloon", "Blue balloon")):
        page.locator("#objects .name").nth(number).fill(name)
        page.locator("#objects .name").nth(number).press("Enter")
        page.wait_for_timeout(600)
    keep("1-marked")
    page.keyboard.press("f")
    waits(page, "frame 25")
    keep("2-following")
    waits(page, "Followed through 59 frames")
    box = page.locator("#timeline").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 30.5 / 60, box["y"] + 20)
    page.keyboard.press("a")
    waits(page, "Accepted")
    page.wait_for_timeout(4000)  # the last message goes
    keep("3-accepted")
    page.keyboard.press("e")
    keep("4-export")
    page.keyboard.press("Escape")
    page.set_viewport_size(SMALL)
    page.emulate_media(color_scheme="dark")
    keep("5-small-dark")


def compose(folder: Path) -> bytes:
    """The large picture and the small one side by side, as JPEG."""
    large, small = (
        np.asarray(cv2.imread(str(folder / f"{name}.png")), np.uint8) for name in ("3-accepted", "5-small-dark")
    )
    gap = np.full((large.shape[0], 24, 3), 255, np.uint8)
    return cv2.imencode(".jpg", np.hstack([large, gap, small]), [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()


def main() -> None:
    """Serve the clip, go through it, write the picture."""
    parser = parser_of(__doc__, toy=False)
    parser.add_argument("--out", "-o", type=Path)
    parser.add_argument("--bundle", default="default")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", PROGRAM, "ui", str(CLIP), "--json", "--no-browser", "--size", str(SIZE)]
        with subprocess.Popen([*command, "--bundle", options.bundle], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            try:
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(
                        executable_path=shutil.which("chromium"), args=["--no-sandbox"]
                    )
                    page = browser.new_page(viewport=LARGE, color_scheme="light")
                    page.set_default_timeout(PATIENCE_MS)
                    page.goto(address)
                    tour(page, folder)
                    browser.close()
            finally:
                process.send_signal(signal.SIGINT)
        (RESULTS / "page.jpg").write_bytes(compose(folder))


if __name__ == "__main__":
    main()
