"""``vos-run licenses``: the licence of everything that an installed vosrt runs with, as the packages state it."""

from __future__ import annotations

import importlib.metadata
import re

# Libraries inside packages whose licence is not that of the package.
INSIDE = {
    "av": "its wheel holds FFmpeg with x264 and x265: GPL-2.0-or-later, under which it is passed on",
    "opencv-python-headless": "its wheel holds FFmpeg: LGPL-2.1-or-later",
    "onnxruntime-gpu": "works with CUDA and cuDNN: NVIDIA's licence",
    "tensorrt-rtx-cu13": "NVIDIA's licence",
}
_LONGEST = 60


def installed() -> list[tuple[str, str, str, str]]:
    """Name, version, licence and remark of vosrt and of every installed package that it asks for, with theirs."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = ["vosrt"]
    while waiting:
        name = _plain(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        requirements = found[name].requires or []
        # Extras of vosrt itself are looked at; those of others are theirs to ask for.
        waiting += [_name(each) for each in requirements if name == "vosrt" or "extra ==" not in each]
    names = sorted(found, key=lambda each: (each != "vosrt", each))
    return [(name, found[name].version, _licence(found[name]), INSIDE.get(name, "")) for name in names]


def _licence(package: importlib.metadata.Distribution) -> str:
    fields = package.metadata
    classified = [
        each.rsplit("::", 1)[1].strip() for each in fields.get_all("Classifier") or [] if "License ::" in each
    ]
    stated_in = {name: fields[name] for name in ("License-Expression", "License") if name in fields}
    for stated in (stated_in.get("License-Expression"), ", ".join(classified), stated_in.get("License")):
        if stated and stated != "UNKNOWN":
            line = " ".join(stated.split())
            return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    return "not stated"


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match[0] if match else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
