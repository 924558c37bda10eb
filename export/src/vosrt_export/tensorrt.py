"""TensorRT engines for a bundle: built through Polygraphy, kept as long as nothing they depend on has changed."""

from __future__ import annotations

import hashlib
import importlib
import re
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import onnx

from vosrt.bundle import Bundle, load_bundle
from vosrt.engines.nvidia import find_gpu
from vosrt.engines.tensorrt_files import (
    MAX_BATCH,
    SUFFIX,
    EnginePrecision,
    EngineRecord,
    Profile,
    engines_folder,
    read_engine,
    read_records,
    write_record,
)
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, MissingExtraError, OptionError, OutputError
from vosrt_export.polygraphy_loader import failures_as_errors, load_polygraphy
from vosrt_export.precision import RECIPE, cast_frames_first, convert_precision
from vosrt_export.sizes import fit_sizes, preset

FlavourChoice = Literal["auto", "tensorrt", "rtx"]
_CAPABILITY = re.compile("[0-9]{2,3}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What to build.

    Attributes:
        flavour: ``"auto"`` is TensorRT-RTX where compute capabilities are named, else whichever is installed.
        capabilities: of the GPUs to build for, as ``"86"``; none: the GPU of this machine.
        precision: of the arithmetic.
        profiles: frame sizes to take; none: the bundle's own size, or 480p.
        batch: frames to take at once, at most: of streams that are stepped together.
        rebuild: build again what is there and fits.
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
    """What became of one engine.

    Attributes:
        path: the engine file.
        record: what it is.
        built: False if it was there and fitted.
        why: the reason to build it.
    """

    path: Path
    record: EngineRecord
    built: bool
    why: str


def build_engines(bundle_path: Path, options: EngineOptions) -> list[Outcome]:
    """Build a bundle's encoder for TensorRT, one engine per GPU architecture, and put it into the bundle.

    Args:
        bundle_path: the bundle; its manifest stays as it is, since engines can always be built again.
        options: what to build.

    Raises:
        BundleError: the bundle is missing, altered or malformed.
        OptionError: something was asked for that the flavour or the graph does not have.
        MissingExtraError: TensorRT or Polygraphy is not installed.
        ExportError: TensorRT cannot build the graph.
        OutputError: the bundle cannot be written to.
    """
    bundle = load_bundle(bundle_path)
    spec = bundle.manifest.encoder
    profiles = fit_sizes(options.profiles or (preset(f"{bundle.manifest.size or 480}p"),), spec)
    flavour = choose_flavour(options)
    trt = flavour.load()
    architectures = [f"sm_{each}" for each in options.capabilities] or [_architecture_here(flavour)]
    for architecture in architectures:
        _check_architecture(trt, flavour, architecture)
    folder = engines_folder(bundle.graph_path("encoder"))
    try:
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link; engines must lie inside the bundle")
        folder.mkdir(exist_ok=True)
        return [
            _keep_or_build(bundle, folder, flavour, trt, architecture, profiles, options)
            for architecture in dict.fromkeys(architectures)
        ]
    except OSError as error:
        raise OutputError(f"cannot write engines to {folder}: {error.strerror or error}") from error


def choose_flavour(options: EngineOptions) -> Flavour:
    """The TensorRT that is asked for, or that suits.

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
    bundle: Bundle,
    folder: Path,
    flavour: Flavour,
    trt: ModuleType,
    architecture: str,
    profiles: tuple[Profile, ...],
    options: EngineOptions,
) -> Outcome:
    wanted = EngineRecord(
        graph="encoder",
        graph_sha256=bundle.manifest.graphs["encoder"].sha256,
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
    model = onnx.load_from_string(bundle.graph_path("encoder").read_bytes())
    prepared = cast_frames_first(convert_precision(model, options.precision)).SerializeToString()
    started = time.perf_counter()
    plan, layers = _build(flavour, trt, prepared, bundle.manifest.encoder.input_name, wanted, folder)
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
    """The engine that is there, or why it has to be built."""
    for record_path, record in read_records(folder):
        if record_path.stem != path.stem:
            continue
        if isinstance(record, EngineError):
            return None, f"stale: {record}"
        # What the name does not say; two graphs could share the beginning of their hash.
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
    """The record comes last: an engine without one is not loaded."""
    path.with_suffix(".json").unlink(missing_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fresh.write_bytes(plan)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    write_record(record, path.parent)


@dataclass(frozen=True)
class Inspection:
    """What TensorRT says of an engine that it has loaded.

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
