"""TensorRT engines for a bundle, built through Polygraphy, and reused until something that they depend on changes."""

from __future__ import annotations

import hashlib
import importlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import onnx

from vosrt._files import replacing, write_all
from vosrt.bundle import load_bundle
from vosrt.engines.nvidia import find_gpu
from vosrt.engines.tensorrt_files import (
    MAX_BATCH,
    SUFFIX,
    EnginePrecision,
    EngineRecord,
    Profile,
    folder_for_engines,
    read_engine,
    read_records,
    write_record,
)
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, MissingExtraError, OptionError, OutputError
from vosrt.onnx_file import Graph
from vosrt_export.polygraphy_loader import failures_as_errors, load_polygraphy
from vosrt_export.precision import RECIPE, cast_frames_first, convert_precision
from vosrt_export.sizes import fit_sizes, preset

FlavourChoice = Literal["auto", "tensorrt", "rtx"]
_CAPABILITY = re.compile("[0-9]{2,3}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of a build.

    Attributes:
        flavour: ``"auto"`` is TensorRT-RTX where compute capabilities are named, else whichever is installed.
        capabilities: of the GPUs to build for, as ``"86"``; none: the GPU of this machine.
        precision: of the arithmetic.
        profiles: frame sizes to take; none: the bundle's own size, or 480p.
        batch: frames to take at once, at most: of streams that are stepped together.
        rebuild: build engines again that exist and fit.
    """

    flavour: FlavourChoice = "auto"
    capabilities: tuple[str, ...] = ()
    precision: EnginePrecision = "fp16"
    profiles: tuple[Profile, ...] = ()
    batch: int = 1
    rebuild: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_BATCH:
            raise OptionError(f"batch is {self.batch}; expected 1 to {MAX_BATCH} frames")
        for capability in self.capabilities:
            if not _CAPABILITY.fullmatch(capability):
                raise OptionError(f"compute capability is {capability!r}; expected numbers such as 86,89,120")


@dataclass(frozen=True)
class Outcome:
    """Result of building one engine.

    Attributes:
        path: the engine file.
        record: what it is.
        built: False if a fitting engine existed.
        why: the reason to build it.
    """

    path: Path
    record: EngineRecord
    built: bool
    why: str


def build_engines(
    bundle_path: str | Path, options: EngineOptions, on_engine: Callable[[str], None] = lambda name: None
) -> list[Outcome]:
    """Build a bundle's encoder for TensorRT, one engine per GPU architecture.

    Engines go into the bundle, or into the user's cache where the bundle is packaged or cannot be written to. The
    manifest stays as it is, since engines can always be built again.

    Args:
        bundle_path: the bundle's directory, or the name of a packaged one.
        options: what to build.
        on_engine: called with the name of each engine before it is looked for and built.

    Raises:
        BundleError: the bundle is missing, altered or malformed.
        OptionError: something was asked for that the flavour or the graph does not have.
        MissingExtraError: TensorRT or Polygraphy is not installed.
        ExportError: TensorRT cannot build the graph.
        OutputError: the engine's folder cannot be written to.
    """
    bundle = load_bundle(bundle_path)
    spec = bundle.manifest.encoder
    profiles = fit_sizes(options.profiles or (preset(f"{bundle.manifest.size or 480}p"),), spec)
    flavour = choose_flavour(options)
    trt = flavour.load()
    architectures = [f"sm_{each}" for each in options.capabilities] or [_architecture_here(flavour)]
    for architecture in architectures:
        _check_architecture(trt, flavour, architecture)
    graph = bundle.encoder_for(options.precision)
    folder = folder_for_engines(graph.path, graph.sha256)
    outcomes = []
    try:
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link; engines must lie in a folder of their own")
        for architecture in dict.fromkeys(architectures):
            on_engine(f"{options.precision} for {architecture}")
            outcome = _keep_or_build(graph, spec.input_name, folder, flavour, trt, architecture, profiles, options)
            outcomes.append(outcome)
        return outcomes
    except OSError as error:
        raise OutputError(f"cannot write engines to {folder}: {error.strerror or error}") from error


def choose_flavour(options: EngineOptions) -> Flavour:
    """Choose the requested flavour of TensorRT, or the one that fits.

    Raises:
        OptionError: target GPUs were named for a TensorRT that builds for the GPU at hand only.
    """
    if options.flavour == "tensorrt" and options.capabilities:
        raise OptionError(
            "TensorRT builds for the GPU that it runs on; leave --compute-capability out, or take --flavour rtx"
        )
    if options.flavour != "auto":
        return TENSORRT if options.flavour == "tensorrt" else TENSORRT_RTX
    if not options.capabilities:
        try:
            TENSORRT.load()
        except (MissingExtraError, EngineError):
            return TENSORRT_RTX
        return TENSORRT
    return TENSORRT_RTX


def _architecture_here(flavour: Flavour) -> str:
    try:
        return find_gpu().architecture
    except EngineError as error:
        remedy = "build on the machine that has it"
        if flavour is TENSORRT_RTX:
            remedy = "name the GPUs to build for, such as --compute-capability 86,89,120"
        raise OptionError(f"{error}; {remedy}") from error


def _check_architecture(trt: ModuleType, flavour: Flavour, architecture: str) -> None:
    if flavour is TENSORRT:
        return
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if architecture.replace("sm_", "SM") not in known:
        raise OptionError(
            f"TensorRT-RTX {trt.__version__} does not build for {architecture}; it builds for "
            f"{', '.join(name.replace('SM', 'sm_') for name in known)}"
        )


def _keep_or_build(
    graph: Graph,
    input_name: str,
    folder: Path,
    flavour: Flavour,
    trt: ModuleType,
    architecture: str,
    profiles: tuple[Profile, ...],
    options: EngineOptions,
) -> Outcome:
    wanted = EngineRecord(
        graph="encoder",
        graph_sha256=graph.sha256,
        flavour=flavour.name,
        version=str(trt.__version__),
        architecture=architecture,
        precision=options.precision,
        profiles=profiles,
        batch=options.batch,
        recipe=RECIPE,
        layers=1,
        build_seconds=0,
        sha256="0" * 64,
        bytes=1,
    )
    path = folder / f"{wanted.stem}{SUFFIX}"
    kept, why = _find(folder, path, wanted)
    if kept and not options.rebuild:
        return Outcome(path, kept, False, "")
    model = onnx.load_from_string(graph.content)
    prepared = cast_frames_first(convert_precision(model, options.precision)).SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)  # not before: a graph that does not fit leaves nothing behind
    started = time.perf_counter()
    plan, layers = _build(flavour, trt, prepared, input_name, wanted, folder)
    record = replace(
        wanted,
        layers=layers,
        build_seconds=round(time.perf_counter() - started, 3),
        sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
    )
    _write(plan, record, path)
    return Outcome(path, record, True, why or "asked for")


def _find(folder: Path, path: Path, wanted: EngineRecord) -> tuple[EngineRecord | None, str]:
    """Return the existing engine, or the reason to build one."""
    for record_path, record in read_records(folder):
        if record_path.stem != path.stem:
            continue
        if isinstance(record, EngineError):
            return None, f"stale: {record}"
        # Fields that the name does not hold; two graphs could share the beginning of their hash.
        stale = [
            name
            for name in ("graph_sha256", "profiles", "batch", "recipe")
            if getattr(record, name) != getattr(wanted, name)
        ]
        if stale:
            return None, f"stale: other {', '.join(stale)}"
        try:
            read_engine(path, record)
        except EngineError as error:
            return None, f"stale: {error}"
        return record, ""
    return None, "not there yet"


def _build(
    flavour: Flavour, trt: ModuleType, model: bytes, input_name: str, wanted: EngineRecord, folder: Path
) -> tuple[bytes, int]:
    """The serialised engine and the number of layers that TensorRT read."""
    polygraphy = load_polygraphy(flavour)
    shapes = [
        polygraphy.Profile().add(
            input_name,
            min=(1, *profile.minimum, 3),
            opt=(wanted.batch, *profile.optimum, 3),
            max=(wanted.batch, *profile.maximum, 3),
        )
        for profile in wanted.profiles
    ]
    timing_cache: str | None = None
    if flavour is TENSORRT_RTX:  # which times nothing while it builds, and so has no cache of timings
        capability = wanted.architecture.removeprefix("sm_")
        create_config = importlib.import_module("polygraphy.backend.tensorrt_rtx").CreateConfigRTX(
            profiles=shapes, compute_capabilities=[(int(capability[:-1]), int(capability[-1]))]
        )
    else:
        timings = folder / f"timing-{wanted.flavour}-{wanted.version}-{wanted.architecture}.cache"
        timing_cache = str(timings)
        create_config = polygraphy.CreateConfig(
            profiles=shapes, load_timing_cache=timing_cache if timings.exists() else None
        )

    def configure(builder: Any, network: Any) -> Any:
        config = create_config(builder, network)
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is to be fp32
        if (flag := getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)) is not None:
            config.set_flag(flag)  # TensorRT-RTX: without it, an engine may not be captured in a CUDA graph
        return config

    with failures_as_errors(f"{flavour.name} cannot build the encoder for {wanted.architecture}"):
        builder, network, parser = polygraphy.network_from_onnx_bytes(model, strongly_typed=True)
        plan = polygraphy.engine_bytes_from_network(
            (builder, network, parser),
            config=configure,
            save_timing_cache=timing_cache,
        )
        return bytes(plan), int(network.num_layers)


def _write(plan: bytes, record: EngineRecord, path: Path) -> None:
    """Write the engine, then its record: an engine without a record is not loaded."""
    path.with_suffix(".json").unlink(missing_ok=True)
    with replacing(path) as file:
        write_all(file, plan)
    write_record(record, path.parent)


@dataclass(frozen=True)
class Inspection:
    """Description of a loaded engine by TensorRT.

    Attributes:
        tensors: inputs and outputs: name, type and shape as text.
        layers: of the engine, after fusion.
        profiles: number of optimisation profiles.
        memory_bytes: GPU memory that a context needs besides weights.
    """

    tensors: tuple[str, ...]
    layers: int
    profiles: int
    memory_bytes: int


def inspect_engine(path: Path, record: EngineRecord, flavour: Flavour) -> Inspection:
    """Load an engine and ask TensorRT what it is; needs a driver, but computes nothing.

    Raises:
        EngineError: the engine is altered, or there is no driver or no GPU that takes it.
        MissingExtraError: TensorRT is not installed.
    """
    plan = read_engine(path, record)
    find_gpu()
    trt = flavour.load()
    engine = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{flavour.name} does not load {path.name} on this GPU")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return Inspection(
        tensors=tuple(
            f"{name} {engine.get_tensor_dtype(name).name.lower()} {list(engine.get_tensor_shape(name))}"
            for name in names
        ),
        layers=engine.num_layers,
        profiles=engine.num_optimization_profiles,
        memory_bytes=engine.device_memory_size_v2,
    )
