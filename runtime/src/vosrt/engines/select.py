"""Choosing an engine: the fastest one that can run the graph, with the reasons why faster ones could not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import NO_FP8, EncoderSpec, Quantised
from vosrt.core import native
from vosrt.engines import registry
from vosrt.engines.base import Engine, EngineInfo
from vosrt.engines.fake import FakeEngine
from vosrt.engines.mask_axes import MASK_AXES, mask_sizes
from vosrt.engines.nvidia import find_gpu
from vosrt.engines.static_shape import StaticShapeEngine
from vosrt.errors import EngineError, MissingExtraError, OptionError
from vosrt.onnx_file import Graph, as_graph
from vosrt.types import ModelPrecision

_PROBE_SIDE = 32
_log = logging.getLogger(__name__)


def create_encoder_engine(
    graph: Graph | Path | Sequence[Graph],
    spec: EncoderSpec,
    *,
    engine: str = "auto",
    precision: ModelPrecision = "auto",
    threads: int = 0,
) -> Engine:
    """Create the engine for an encoder graph and prove on a small frame that it runs.

    Args:
        graph: the ONNX file (not read by the fake engine), or one network in several precisions, as
            `vosrt.bundle.Bundle.encoders` has it. A graph that is quantised runs so on every engine; ``precision`` is
            then that of what is not quantised.
        engine: ``"auto"``, ``"fake"`` or a name of `vosrt.engines.registry`; former names are taken with a warning.
        precision: inside the graph; ``"auto"`` is what the engine is fastest in: int8 where a graph is quantised and
            the processor has 8-bit dot products, else bf16 where it has that natively; on a GPU the narrowest that was
            built.
        threads: 0 is one per processor.

    Raises:
        OptionError: no such engine, one that cannot run on this machine or lacks the precision, or no graph that is
            quantised in it.
        MissingExtraError: the engine that was asked for, or every one, is not installed.
        EngineError: the engine that was asked for, or every one, cannot run the graph.
    """
    given, engine = engine, registry.plain_name(engine)
    if engine != given:
        _log.warning("the engine %s is called %s; use that name", given, engine)
    check_name(engine)
    graphs = [as_graph(graph)] if isinstance(graph, Graph | Path) else [*graph]
    if precision in get_args(Quantised):
        found = [each.quantised for each in graphs if each.quantised]
        if precision not in found:
            raise OptionError(
                f"precision is {precision!r}, but this bundle is {f'in {found[0]}' if found else 'not quantised'}; "
                f"{NO_FP8 if precision == 'fp8' else 'make one that is with vos-export quantise'}, "
                "or use precision 'auto'"
            )
    if engine == "fake":
        return FakeEngine(spec)
    if engine == "auto":
        return _create_fastest(graphs, spec, precision, threads)
    try:
        return _create_narrowest(engine, graphs, spec, precision, threads, "asked for")
    except EngineError as error:
        # A remedy, such as a driver to install, is for the machine: on this one, the engine runs no network at all.
        kind = OptionError if error.remedy else EngineError
        raise kind(f"{error}; engine 'auto' takes the fastest that runs here") from error


def check_name(engine: str, option: str = "engine") -> None:
    """Refuse a name that is no engine's.

    Args:
        engine: a name or a former one, or ``"auto"``.
        option: whose value it is, for the error.

    Raises:
        OptionError: no engine has this name.
    """
    if registry.plain_name(engine) not in (*registry.UNREGISTERED, *registry.names()):
        raise OptionError(f"{option} is {engine!r}; expected one of auto, {', '.join(registry.all_names())}")


def _create_fastest(graphs: Sequence[Graph], spec: EncoderSpec, precision: ModelPrecision, threads: int) -> Engine:
    refusals: list[str] = []
    missing = True  # every engine that runs without a GPU
    order = registry.auto_order()
    try:
        find_gpu()
    except EngineError as error:
        need_it = [name for name in order if not registry.on_processor(name)]
        refusals.append(f"{', '.join(need_it)} refused: {error.reason}")
        order = tuple(name for name in order if name not in need_it)
    for name in order:
        reason = "; ".join(["fastest of those that can run here", *refusals])
        try:
            return _create_narrowest(name, graphs, spec, precision, threads, reason)
        except (EngineError, MissingExtraError, OptionError) as error:
            refusals.append(f"{name} refused: {error}")
            missing &= isinstance(error, MissingExtraError) or not registry.on_processor(name)
    if missing:
        raise MissingExtraError("an engine that runs networks", "cpu")
    raise EngineError("no engine can run the encoder: " + "; ".join(refusals))


def _create_narrowest(
    name: str, graphs: Sequence[Graph], spec: EncoderSpec, precision: ModelPrecision, threads: int, reason: str
) -> Engine:
    """Create an engine for the graph of a precision; with ``"auto"`` for the first that it runs, the fastest first."""
    known = registry.registered(name)
    plain = [each for each in graphs if each.quantised is None] or [*graphs]
    quantised = [each for each in graphs if each.quantised is not None and each not in plain]
    if precision != "auto":
        chosen = next((each for each in graphs if each.quantised == precision), plain[0])
        return _create(known, chosen, spec, precision, threads, reason)
    if "cpu" in known.devices:
        has = [each.quantised for each in quantised]
        if has and not native.has_int8_dot_products():
            reason, quantised = f"{reason}; {has[0]} refused: this processor lacks 8-bit dot products (VNNI)", []
    else:  # what other engines for GPUs make of a quantised graph may be slower
        quantised = [each for each in quantised if each.quantised in known.precisions]
    for graph in quantised:
        try:
            why = f"{reason}; {graph.quantised} is the fastest of the bundle's precisions here"
            return _create(known, graph, spec, precision, threads, why)
        except EngineError as error:
            reason = f"{reason}; {graph.quantised} refused: {error}"
    return _create(known, plain[0], spec, precision, threads, reason)


def _create(
    known: registry.Registration,
    graph: Graph,
    spec: EncoderSpec,
    precision: ModelPrecision,
    threads: int,
    reason: str,
) -> Engine:
    """Create an engine, and prove on one small frame of noise that it computes an embedding."""
    _check_precision(known, precision, graph.quantised)
    created = known.factory(graph, spec, precision=precision, threads=threads, reason=reason)
    if graph.quantised and graph.quantised not in known.precisions and isinstance(created, StaticShapeEngine):
        created.describe_as(graph.quantised)
    least = getattr(created, "smallest_frame", (_PROBE_SIDE, _PROBE_SIDE))
    height, width = (max(side, spec.min_side) for side in least)
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    run = created.probe if isinstance(created, StaticShapeEngine) else created.run
    _check_embedding(run({spec.input_name: frames}).get(spec.output_name), spec, (height, width), known.name)
    return created


def _check_precision(known: registry.Registration, precision: ModelPrecision, quantised: str | None) -> None:
    if precision in ("auto", quantised, *known.precisions):
        return
    others = [name for name in registry.auto_order() if precision in registry.registered(name).precisions]
    instead = f", or engine {', '.join(others)}" if others else ""
    raise OptionError(
        f"the {known.name} engine has no {precision}; expected {', '.join(('auto', *known.precisions))}{instead}"
    )


def _check_embedding(found: NDArray[Any] | None, spec: EncoderSpec, frame: tuple[int, int], name: str) -> None:
    """Have an engine's output be an embedding, so that one that computes something else is passed over."""
    wanted = (1, *spec.grid(*frame), spec.channels)
    if found is None or found.shape != wanted or found.dtype != np.float32:
        given = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise EngineError(f"{name} gave {given} for {spec.output_name!r}; expected float32 {list(wanted)}")
    if not np.isfinite(found).all():
        raise EngineError(f"{name} computes NaN or infinity from a frame of noise")


def create_mask_engine(graph: Graph | Path, role: str, encoder: EngineInfo, *, threads: int = 0) -> Engine:
    """Create the engine for a further graph of a mask-embedding bundle: the encoder's where that takes mask networks.

    Beside engines of a GPU that do not take it, it is the fallback of GPUs (`Registration.fallback`). Where that cannot
    be had, and beside all other engines, it is that of the processor.

    Args:
        graph: what to run; a path is read once.
        role: ``"mask_encoder"`` or ``"decoder"``.
        encoder: the engine that runs the encoder, and its precision.
        threads: 0 is one per processor.

    Raises:
        EngineError: the graph cannot be loaded.
    """
    graph, axes, reason = as_graph(graph), MASK_AXES[role], f"the encoder runs on {encoder.name}"

    def create(known: registry.Registration, why: str) -> Engine:
        assert known.mask_factory is not None
        wide: ModelPrecision = "fp32" if "cpu" in known.devices else "auto"
        precision = next((each for each in known.precisions if each == encoder.precision), wide)
        return known.mask_factory(graph, axes, precision=precision, threads=threads, reason=why)

    known = registry.registered(encoder.name) if encoder.name in registry.names() else None
    follows = known is not None and known.mask_factory is not None
    if registry.on_processor(encoder.name):
        return create(known, "as the encoder") if known and follows else create(registry.fallback("cpu"), reason)
    others = registry.fallback("cuda")
    for candidate in [known, others] if known and follows and known is not others else [others]:
        try:
            on_gpu = create(candidate, "as the encoder" if candidate is known else reason)
            if isinstance(on_gpu, StaticShapeEngine):
                on_gpu.probe_loading(mask_sizes(role, *getattr(on_gpu, "smallest_frame", (_PROBE_SIDE, _PROBE_SIDE))))
        except (EngineError, MissingExtraError) as error:
            reason = f"{reason}; {candidate.name} refused: {error}"
        else:
            return on_gpu
    return create(registry.fallback("cpu"), reason)
