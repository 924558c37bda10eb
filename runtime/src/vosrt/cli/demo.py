"""The clip of ``vos-run demo``, rendered by `benchmarks/scenes/demo_clip.py`, and the outlines of its first frame."""

from __future__ import annotations

from pathlib import Path

CLIP = Path(__file__).with_name("demo.mp4")
POLYGON = Path(__file__).with_name("demo.json")
SIZE = 288  # short side in pixels, the clip's own
