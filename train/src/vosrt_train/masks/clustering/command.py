"""The command ``vos-train pseudo-masks``: pseudo-masks of a folder of videos, and contact sheets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from vosrt.bundle import Feature
from vosrt.console import progress_bar
from vosrt.errors import OptionError, OutputError
from vosrt_train.backbones import DEFAULT_KIND, kind_of
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config_file import load_config
from vosrt_train.data.cache import Cache, plan_cache
from vosrt_train.distributed import join_world
from vosrt_train.masks.clustering.make import Job, make_pseudo_masks
from vosrt_train.masks.clustering.sheets import write_sheets
from vosrt_train.masks.clustering.store import PseudoMaskEntry, PseudoMaskError, PseudoMasks
from vosrt_train.model import Encoder
from vosrt_train.monitor import quiet_note
from vosrt_train.prepare import default_cache, prepare_cache, use_threads

SHEETS_NAME = "sheets"


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """Options of the command; see ``vos-train pseudo-masks --help``."""

    data: Path
    checkpoint: Path
    output: Path
    preset: str
    changes: tuple[str, ...] = ()
    before: Path | None = None
    cache: Path | None = None
    videos: tuple[str, ...] = ()
    sheets: int = 24
    quiet: bool = False


def make_masks(request: MaskRequest) -> None:
    """Make pseudo-masks and contact sheets; continue where an earlier call was killed.

    Raises:
        VosrtError: an option is wrong, or the work failed.
    """
    encoder = load_checkpoint(request.checkpoint).encoder
    if not isinstance(encoder, Encoder):
        raise OptionError(
            f"{request.checkpoint} has a {kind_of(encoder.config)} encoder; pseudo-masks are made with "
            f"{DEFAULT_KIND} only"
        )
    config = load_config(request.preset, request.changes)
    feature: Feature = "res4" if encoder.config.layer4 else "res3"
    config = replace(config, encoder=encoder.config, validation=replace(config.validation, feature=feature))
    earlier = None if request.before is None else _earlier(request.before)
    masks = PseudoMasks(request.output)
    if not masks.entries and request.output.exists() and any(request.output.iterdir()):
        raise OutputError(f"{request.output} holds something else; name another folder with -o")
    use_threads(config.compute)
    say = quiet_note(request.quiet)
    with join_world(config.compute) as world:
        plan = plan_cache(request.data, request.cache or default_cache(request.data), config.cache)
        cache = _chosen(prepare_cache(plan, config, world, quiet=request.quiet), request.videos)
        with progress_bar(visible=not request.quiet) as bar:
            task = bar.add_task("clustering", total=len(cache.videos), completed=len(masks.entries), figures="")

            def on_video(_: PseudoMaskEntry) -> None:
                bar.update(task, advance=1)

            make_pseudo_masks(Job(config, cache), encoder.to(world.device), masks, on_video=on_video)
    versions = [("initial", earlier), ("final", masks)] if earlier is not None else [("pseudo-masks", masks)]
    folder = request.output / SHEETS_NAME
    sheets = write_sheets(cache.videos[: request.sheets], versions, folder) if request.sheets else []
    say(_report(masks))
    if sheets:
        say(f"{len(sheets)} contact sheets: {folder}")


def _earlier(directory: Path) -> PseudoMasks:
    masks = PseudoMasks(directory)
    if not masks.entries:
        raise PseudoMaskError(f"--before {directory} has no pseudo-masks; name a folder that pseudo-masks were made in")
    return masks


def _chosen(cache: Cache, names: tuple[str, ...]) -> Cache:
    """Choose the videos whose name contains one of the words; without words, all of them."""
    if not names:
        return cache
    videos = tuple(video for video in cache.videos if any(name in video.name for name in names))
    if not videos:
        raise OptionError(f"no video's name contains {' or '.join(names)}; leave out --video for all of them")
    return Cache(videos, cache.skipped)


def _report(masks: PseudoMasks) -> str:
    summary = masks.summary()
    lines = [
        f"{summary['usable']:.0f} of {summary['videos']:.0f} videos usable; foreground {summary['foreground']:.0%} of "
        f"the cells, flicker {summary['flicker']:.0%}"
    ]
    refused = Counter(entry.reason.split(":")[0] for entry in masks.entries.values() if not entry.usable)
    lines += [f"not learnt from: {count} times: {reason}" for reason, count in refused.most_common(5)]
    return "\n".join(lines)
