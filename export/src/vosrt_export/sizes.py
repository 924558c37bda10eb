"""Frame sizes of an engine, as options: presets such as 480p, or heights and widths."""

from __future__ import annotations

import re

from vosrt.bundle import EncoderSpec
from vosrt.engines.tensorrt_files import Profile, Size
from vosrt.errors import OptionError

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_PRESET = re.compile(r"([0-9]{2,4})p(-portrait)?")


def preset(name: str) -> Profile:
    """Profile of a short side: from 4:3 to 2.4:1, best at 16:9.

    Args:
        name: ``"480p"`` for 480 pixels, ``"480p-portrait"`` for upright frames; any short side will do.

    Raises:
        OptionError: it is no such name.
    """
    found = _PRESET.fullmatch(name)
    if not found:
        raise OptionError(f"preset is {name!r}; expected a short side in pixels such as 480p, or 480p-portrait")
    side = int(found[1])
    widths = (-(-side * 4 // 3), -(-side * 16 // 9), -(-side * 12 // 5))
    sizes = [(width, side) if found[2] else (side, width) for width in widths]
    return Profile(minimum=sizes[0], optimum=sizes[1], maximum=sizes[2])


def parse_sizes(text: str) -> tuple[Profile, ...]:
    """Parse the profiles of ``--sizes``.

    Args:
        text: separated by commas, each ``HEIGHTxWIDTH`` for exactly this size, or ``MIN:BEST:MAX`` of three such.

    Raises:
        OptionError: it is written otherwise, or a range is not in order.
    """
    return tuple(_profile(part.strip()) for part in text.split(","))


def fit_sizes(profiles: tuple[Profile, ...], spec: EncoderSpec) -> tuple[Profile, ...]:
    """The working frames of frames of such sizes, which may have to be whole numbers of cells.

    Raises:
        OptionError: a profile leaves what the network takes.
    """

    def whole(size: Size) -> Size:
        return spec.whole_cells(size[0]), spec.whole_cells(size[1])

    fitting = tuple(
        Profile(minimum=whole(each.minimum), optimum=whole(each.optimum), maximum=whole(each.maximum))
        for each in profiles
    )
    for given, profile in zip(profiles, fitting, strict=True):
        if min(profile.minimum) < spec.min_side or max(profile.maximum) > spec.max_side:
            raise OptionError(f"size is {given}; this model takes sides of {spec.min_side} to {spec.max_side} pixels")
    return fitting


def _profile(text: str) -> Profile:
    sizes = [_size(part, text) for part in text.split(":")]
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise OptionError(f"size is {text!r}; expected HEIGHTxWIDTH, or three of them as MIN:BEST:MAX")
    low, best, high = sizes
    if not all(low[axis] <= best[axis] <= high[axis] for axis in (0, 1)):
        raise OptionError(f"size is {text!r}; expected heights and widths that do not fall from MIN over BEST to MAX")
    return Profile(minimum=low, optimum=best, maximum=high)


def _size(text: str, whole: str) -> Size:
    found = _SIZE.fullmatch(text)
    if not found:
        raise OptionError(f"size is {whole!r}; expected HEIGHTxWIDTH such as 480x854, or MIN:BEST:MAX of three such")
    return int(found[1]), int(found[2])
