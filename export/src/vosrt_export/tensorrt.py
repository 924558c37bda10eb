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
from typing import Any, Literal, get_args

import onnx

from vosrt._files import check_writable, replacing, write_all, writing
from vosrt.bundle import Quantised, load_bundle
from vosrt.engines.mask_axes import MASK_AXES, mask_sizes
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
        profiles: frame sizes to take; none: the bundle's own size, or 480p.
        batch: frames to take at once, at most: of streams that are stepped together.
        objects: of a frame that mask networks take, at most.
        rebuild: build engines again that exist and fit.
    """

    flavour: FlavourChoice = "auto"
    capabilities: tuple[str, ...] = ()
    precision: EnginePrecision = "fp16"
    profiles: tuple[Profile, ...] = ()
    batch: int = 1
    objects: int = 10
    rebuild: bool = False

    def __post_init__(self) -> None:
        for name, unit in (("batch", "frames"), ("objects", "objects")):
            if not 1 <= getattr(self, name) <= MAX_BATCH:
                raise OptionError(f"{name} is {getattr(self, name)}; expected 1 to {MAX_BATCH} {unit}")
        for capability in self.capabilities:
            if not _CAPABILITY.fullmatch(capability):
                raise OptionError(f"compute capability is {capability!r}; expected numbers such as 86,89,120")


@dataclass(frozen=True)
class Outcome:
    """Result of building one engine.

    Attributes:
        built: False if a fitting engine existed.
    """

    path: Path
    record: EngineRecord
    built: bool
    why: str


def build_engines(
    bundle_path: str | Path, options: EngineOptions, on_engine: Callable[[str], None] = lambda name: None
) -> list[Outcome]:
    """Build a bundle's networks for TensorRT, one engine each per GPU architecture: the encoder, and mask networks.

    Engines go into the bundle, or into the user's cache where the bundle is packaged or cannot be written to. The
    manifest stays as it is, since engines can always be built again.

    Args:
        bundle_path: the bundle's directory, or the name of a packaged one.
        on_engine: called with the name of each engine before it is looked for and built.

    Raises:
        BundleError: the bundle is missing, altered or malformed.
        OptionError: something was asked for that the flavour or the graph does not have.
        MissingExtraError: TensorRT or Polygraphy is not installed.
        ExportError: TensorRT cannot build the graph.
        OutputError: the engine's folder is a link or a file, or the user may not write into it.
        WorkError: the system refused to write an engine.
    """
    bundle = load_bundle(bundle_path)
    spec = bundle.manifest.encoder
    profiles = fit_sizes(options.profiles or (preset(f"{bundle.manifest.size or 480}p"),), spec)
    flavour = choose_flavour(options)
    trt = flavour.load()
    architectures = [f"sm_{each}" for each in options.capabilities] or [_architecture_here(flavour)]
    for architecture in architectures:
        _check_architecture(trt, flavour, architecture)
    networks = [Network("encoder", bundle.encoder_for(options.precision), options.precision, options.batch)]
    for role in bundle.manifest.graphs:
        if role in MASK_AXES:  # which are not quantised
            narrow = "fp16" if options.precision in get_args(Quantised) else options.precision
            networks.append(Network(role, bundle.graph(role), narrow, options.objects))
    outcomes = []
    for network in networks:
        folder = folder_for_engines(network.graph.path, network.graph.sha256)
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link; engines must lie in a folder of their own")
        check_writable(folder, "make it writable")
        with writing(folder):
            for architecture in dict.fromkeys(architectures):
                on_engine(f"{network.role} in {network.precision} for {architecture}")
                outcomes.append(
                    _keep_or_build(network, folder, flavour, trt, architecture, profiles, rebuild=options.rebuild)
                )
    return outcomes


@dataclass(frozen=True)
class Network:
    """One graph to build engines of.

    Attributes:
        batch: frames to take at once, at most; of a mask network, objects.
    """

    role: str
    graph: Graph
    precision: EnginePrecision
    batch: int

    def shapes(self, model: onnx.ModelProto, height: int, width: int, batch: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs of ``model`` for a frame of this size, in pixels."""
        sizes = {"n": batch, "height": height, "width": width}
        if self.role in MASK_AXES:
            sizes = mask_sizes(self.role, height, width, batch)
        axes = MASK_AXES.get(self.role, {each.name: ("n", "height", "width", None) for each in model.graph.input})
        return {
            each.name: tuple(
                sizes[axis] if axis else dim.dim_value
                for axis, dim in zip(axes[each.name], each.type.tensor_type.shape.dim, strict=True)
            )
            for each in model.graph.input
        }


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
        raise OptionError(f"{error.reason}; {remedy}") from error


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
    network: Network,
    folder: Path,
    flavour: Flavour,
    trt: ModuleType,
    architecture: str,
    profiles: tuple[Profile, ...],
    *,
    rebuild: bool,
) -> Outcome:
    wanted = EngineRecord(
        graph=network.role,
        graph_sha256=network.graph.sha256,
        flavour=flavour.name,
        version=str(trt.__version__),
        architecture=architecture,
        precision=network.precision,
        profiles=profiles,
        batch=network.batch,
        recipe=RECIPE,
        layers=1,
        build_seconds=0,
        sha256="0" * 64,
        bytes=1,
    )
    path = folder / f"{wanted.stem}{SUFFIX}"
    kept, why = _find(folder, path, wanted)
    if kept and not rebuild:
        return Outcome(path, kept, False, "")
    model = cast_frames_first(convert_precision(onnx.load_from_string(network.graph.content), network.precision))
    folder.mkdir(parents=True, exist_ok=True)  # not before: a graph that does not fit leaves nothing behind
    started = time.perf_counter()
    plan, layers = _build(flavour, trt, model, network, wanted, folder)
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
    flavour: Flavour, trt: ModuleType, model: onnx.ModelProto, network: Network, wanted: EngineRecord, folder: Path
) -> tuple[bytes, int]:
    """The serialised engine and the number of layers that TensorRT read."""
    polygraphy = load_polygraphy(flavour)
    typical = wanted.batch if network.role == "encoder" else 1  # most videos have one object or two
    shapes = []
    for profile in wanted.profiles:
        least, best, most = (
            network.shapes(model, *size, batch)
            for size, batch in ((profile.minimum, 1), (profile.optimum, typical), (profile.maximum, wanted.batch))
        )
        shapes.append(polygraphy.Profile())
        for name in least:
            shapes[-1].add(name, min=least[name], opt=best[name], max=most[name])
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

    with failures_as_errors(f"{flavour.name} cannot build the {network.role} for {wanted.architecture}"):
        builder, parsed, parser = polygraphy.network_from_onnx_bytes(model.SerializeToString(), strongly_typed=True)
        plan = polygraphy.engine_bytes_from_network(
            (builder, parsed, parser),
            config=configure,
            save_timing_cache=timing_cache,
        )
        return bytes(plan), int(parsed.num_layers)


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
