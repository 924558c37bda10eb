"""The command ``vos-export engine``."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal

import typer

from vosrt.bundle import load_bundle
from vosrt.cli.app import require
from vosrt.cli.options import ANY_BUNDLE_HELP, option
from vosrt.console import say, status
from vosrt.engines.mask_axes import MASK_AXES
from vosrt.engines.tensorrt_files import (
    SUFFIX,
    EngineRecord,
    EngineTarget,
    Profile,
    engine_folders,
    read_engine,
    read_records,
)
from vosrt.engines.tensorrt_flavour import FLAVOURS
from vosrt.errors import EngineError, OptionError, VosrtError


def engine(
    bundle: Annotated[str, typer.Argument(help=ANY_BUNDLE_HELP)],
    *,
    flavour: Annotated[
        Literal["auto", "tensorrt", "rtx"],
        option("TensorRT for the GPU at hand, or TensorRT-RTX, which needs none to build."),
    ] = "auto",
    compute_capability: Annotated[
        str | None, option("GPUs to build for. Default: the one of this machine.", metavar="86,89,…")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "fp8"],
        option("Of the arithmetic; int8 and fp8 need a graph that is quantised so."),
    ] = "fp16",
    preset: Annotated[
        str | None, option("Frame sizes by short side; 480p-portrait for upright ones.", metavar="480p,…")
    ] = None,
    sizes: Annotated[
        str | None, option("Frame sizes: 480x854, or MIN:BEST:MAX as 480x640:480x854:480x1152.", metavar="HxW,…")
    ] = None,
    batch: Annotated[int, option("Frames to take at once, at most: of streams stepped together.", metavar="N")] = 1,
    objects: Annotated[int, option("Objects of a frame that mask networks take, at most.", metavar="N")] = 10,
    rebuild: Annotated[bool, option("Build again what is there and fits.", None, "--rebuild")] = False,
    show: Annotated[bool, option("List the engines that are there; build nothing.", None, "--list")] = False,
) -> int:
    """Build TensorRT engines that vos-run finds.

    They go into the bundle's folder. Those of a packaged bundle go into a cache: $VOSRT_CACHE, or ~/.cache/vosrt.
    """
    if show:
        return list_engines(bundle)
    for module, name in (("onnx", "onnx"), ("polygraphy", "Polygraphy")):
        require(module, name, "tensorrt-rtx")
    from vosrt_export.tensorrt import EngineOptions, build_engines

    options = EngineOptions(
        flavour=flavour,
        capabilities=tuple(part.strip() for part in compute_capability.split(",")) if compute_capability else (),
        precision=precision,
        profiles=_profiles(preset, sizes),
        batch=batch,
        objects=objects,
        rebuild=rebuild,
    )
    with status("loading") as tell:
        outcomes = build_engines(bundle, options, lambda name: tell(f"building {name}"))
    for outcome in outcomes:
        record = outcome.record
        done = f"built in {record.build_seconds:.1f} s ({outcome.why})" if outcome.built else "there already, and fits"
        say(f"{outcome.path}: {done}; {record.bytes / 1e6:.1f} MB; {_sizes(record)}")
    return 0


def list_engines(path: str) -> int:
    """Print the engines of a bundle and of the user's cache: which are whole, and which this machine runs."""
    bundle = load_bundle(path)
    masks = [bundle.graph(role) for role in bundle.manifest.graphs if role in MASK_AXES]
    graphs = {graph.sha256: graph for graph in [*bundle.encoders, *masks]}
    folders = [*dict.fromkeys(chain(*(engine_folders(graph.path, sha256) for sha256, graph in graphs.items())))]
    entries = list(chain.from_iterable(map(read_records, folders)))
    if not entries:
        say(f"{' and '.join(map(str, folders))}: no engines; build one with: vos-export engine {path}")
    for record_path, record in entries:
        if isinstance(record, EngineError):
            say(f"{record_path}: {record}")
            continue
        engine_path = record_path.with_suffix(SUFFIX)
        try:
            read_engine(engine_path, record)
            if record.graph_sha256 not in graphs:
                raise EngineError("stale: it was built from another graph")
            state = _here(record.flavour, record.graph_sha256).objection(record) or "runs here"
        except VosrtError as error:
            state = str(error)
        say(f"{engine_path}: {record.bytes / 1e6:.1f} MB; {record.layers} layers; {_sizes(record)}; {state}")
    return 0


def _sizes(record: EngineRecord) -> str:
    sizes = ", ".join(map(str, record.profiles))
    what = "at once" if record.graph == "encoder" else "objects"
    return sizes if record.batch == 1 else f"{sizes}, up to {record.batch} {what}"


def _here(flavour: str, graph_sha256: str) -> EngineTarget:
    """Return the target that an engine for this machine needs."""
    from vosrt.engines.nvidia import find_gpu

    gpu, known = find_gpu(), FLAVOURS[flavour]
    return EngineTarget(
        flavour=known.name,
        version=str(known.load().__version__),
        architecture=gpu.architecture,
        graph_sha256=graph_sha256,
    )


def _profiles(presets: str | None, sizes: str | None) -> tuple[Profile, ...]:
    from vosrt_export.sizes import parse_sizes, preset

    if presets and sizes:
        raise OptionError("--preset and --sizes were both given; state the sizes once")
    if presets:
        return tuple(preset(name.strip()) for name in presets.split(","))
    return parse_sizes(sizes) if sizes else ()
