"""The command ``vos-export engine``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vosrt.bundle import load_bundle
from vosrt.cli.app import require
from vosrt.engines.tensorrt_files import (
    SUFFIX,
    EngineRecord,
    EngineTarget,
    Profile,
    engines_folder,
    read_engine,
    read_records,
)
from vosrt.engines.tensorrt_flavour import FLAVOURS
from vosrt.errors import EngineError, OptionError, VosrtError

engine_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class FlavourOption(StrEnum):
    """Which TensorRT."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    RTX = "rtx"


class PrecisionOption(StrEnum):
    """Precisions of the arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


@engine_app.command()
def engine(
    bundle: Annotated[Path, typer.Argument(help="Folder made by vos-export.")],
    *,
    flavour: Annotated[
        FlavourOption, typer.Option(help="TensorRT for the GPU at hand, or TensorRT-RTX, which needs none to build.")
    ] = FlavourOption.AUTO,
    compute_capability: Annotated[
        str | None, typer.Option(metavar="86,89,…", help="GPUs to build for. Default: the one of this machine.")
    ] = None,
    precision: Annotated[
        PrecisionOption, typer.Option(help="Of the arithmetic; int8 and fp8 need a graph that is quantised so.")
    ] = PrecisionOption.FP16,
    preset: Annotated[
        str | None,
        typer.Option(metavar="480p,…", help="Frame sizes by short side; 480p-portrait for upright ones."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="HxW,…", help="Frame sizes: 480x854, or MIN:BEST:MAX as 480x640:480x854:480x1152."),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="N", help="Frames to take at once, at most: of streams stepped together.")
    ] = 1,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again what is there and fits.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the engines that are there; build nothing.")] = False,
) -> int:
    """Build TensorRT engines for a bundle; vos-run then finds them in it."""
    if show:
        return list_engines(bundle)
    for module, name in (("onnx", "onnx"), ("polygraphy", "Polygraphy")):
        require(module, name, "export")
    from vosrt_export.tensorrt import EngineOptions, build_engines

    options = EngineOptions(
        flavour=flavour.value,
        capabilities=tuple(part.strip() for part in compute_capability.split(",")) if compute_capability else (),
        precision=precision.value,
        profiles=_profiles(preset, sizes),
        batch=batch,
        rebuild=rebuild,
    )
    for outcome in build_engines(bundle, options):
        record = outcome.record
        done = f"built in {record.build_seconds:.1f} s ({outcome.why})" if outcome.built else "there already, and fits"
        print(f"{outcome.path}: {done}; {record.bytes / 1e6:.1f} MB; {_sizes(record)}")
    return 0


def list_engines(path: Path) -> int:
    """Print what is in a bundle's ``engines`` folder, and of each whether its files are whole and it runs here."""
    bundle = load_bundle(path)
    graph = bundle.manifest.graphs["encoder"]
    folder = engines_folder(bundle.graph_path("encoder"))
    entries = list(read_records(folder))
    if not entries:
        print(f"{folder}: no engines; build one with: vos-export engine {path}")
    for record_path, record in entries:
        if isinstance(record, EngineError):
            print(f"{record_path}: {record}")
            continue
        engine_path = record_path.with_suffix(SUFFIX)
        try:
            read_engine(engine_path, record)
            if record.graph_sha256 != graph.sha256:
                raise EngineError("stale: it was built from another graph")
            state = _here(record.flavour, graph.sha256).objection(record) or "runs here"
        except VosrtError as error:
            state = str(error)
        print(f"{engine_path}: {record.bytes / 1e6:.1f} MB; {record.layers} layers; {_sizes(record)}; {state}")
    return 0


def _sizes(record: EngineRecord) -> str:
    sizes = ", ".join(map(str, record.profiles))
    return sizes if record.batch == 1 else f"{sizes}, up to {record.batch} at once"


def _here(flavour: str, graph_sha256: str) -> EngineTarget:
    """What an engine would have to be built for to run on this machine."""
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
