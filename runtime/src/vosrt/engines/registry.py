"""The engines that are installed: each is one object that the entry-point group ``vosrt.engines`` names.

    [project.entry-points."vosrt.engines"]
    mine = "my_package:ENGINE"

vosrt's own engines register in the same way. ``auto`` tries those alone: what is installed beside vosrt must not change
the results of people who did not ask for it, so an engine of another package runs where it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol

from vosrt.arrays import DeviceKind
from vosrt.bundle import EncoderSpec
from vosrt.engines.base import Engine
from vosrt.engines.static_shape import Axes
from vosrt.errors import EngineError
from vosrt.onnx_file import Graph
from vosrt.text import reason_of
from vosrt.types import ModelPrecision

GROUP = "vosrt.engines"
UNREGISTERED = ("auto", "fake")  # the fastest of the engines, and one for tests that reads no graph


class Factory(Protocol):
    """Creates an engine."""

    def __call__(
        self, graph: Graph, spec: EncoderSpec, *, precision: ModelPrecision, threads: int, reason: str
    ) -> Engine:
        """Create the engine of an encoder graph.

        Args:
            graph: the checked ONNX file; ``graph.content`` are its bytes.
            precision: one of those that were registered, ``graph.quantised``, or ``"auto"``.
            threads: 0 is one per processor.
            reason: for `EngineInfo`.

        Raises:
            VosrtError: the engine cannot run on this machine, or not this graph.
        """


class GraphFactory(Protocol):
    """Creates an engine for any graph, by the dynamic axes of its inputs; otherwise as `Factory`."""

    def __call__(self, graph: Graph, axes: Axes, *, precision: ModelPrecision, threads: int, reason: str) -> Engine:
        """Create the engine of a graph."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """An engine as its package registers it.

    Attributes:
        name: what users ask for.
        needs: what must be installed or plugged in, in a few words.
        devices: where it runs: ``"cpu"``, ``"cuda"`` or both.
        precisions: that can be asked for, besides ``"auto"`` and what a graph is quantised in.
        mask_factory: creates it for a mask network; None leaves mask networks to another engine.
        find: returns the version of what it needs, or raises the VosrtError that says why it cannot run; None does not
            look.
        rank: place among the engines that ``auto`` tries, the fastest first; read of vosrt's own engines alone, as what
            follows.
        former_names: that are taken with a warning.
        fallback: whether it runs mask networks on its device beside encoders whose engine runs none; on the processor,
            also whether it is what to install where no engine runs.
    """

    name: str
    needs: str
    devices: tuple[str, ...]
    precisions: tuple[ModelPrecision, ...]
    factory: Factory
    mask_factory: GraphFactory | None = None
    find: Callable[[], str] | None = None
    rank: int = 0
    former_names: tuple[str, ...] = ()
    fallback: bool = False


def encoder_factory(create: GraphFactory) -> Factory:
    """Return the factory that creates an engine for the one input of an encoder, its frames."""

    def factory(graph: Graph, spec: EncoderSpec, *, precision: ModelPrecision, threads: int, reason: str) -> Engine:
        axes = {spec.input_name: ("n", "height", "width", None)}
        return create(graph, axes, precision=precision, threads=threads, reason=reason)

    return factory


@cache
def names() -> tuple[str, ...]:
    """Names of all engines, in alphabetical order; nothing of them is imported."""
    return tuple(sorted(entry.name for entry in entry_points(group=GROUP)))


@cache
def auto_order() -> tuple[str, ...]:
    """Names of vosrt's own engines, the fastest first.

    Raises:
        EngineError: the installation does not name them.
    """
    own = [registered(entry.name) for entry in entry_points(group=GROUP) if entry.value.startswith("vosrt.")]
    if not own:
        raise EngineError("this installation of vosrt registers no engines; reinstall vosrt", remedy="reinstall vosrt")
    return tuple(each.name for each in sorted(own, key=lambda each: each.rank))


def all_names() -> tuple[str, ...]:
    """Names of all engines: those of `auto_order`, then those of other packages."""
    return (*auto_order(), *(name for name in names() if name not in auto_order()))


def on_processor(name: str) -> bool:
    """Whether an engine runs without a GPU; True of a name that nothing is registered under."""
    return name not in names() or "cpu" in registered(name).devices


@cache
def registered(name: str) -> Registration:
    """Import what a package registers under a name of `names`.

    Raises:
        EngineError: it cannot be imported, or is no registration of that name.
    """
    (entry, *_) = entry_points(group=GROUP, name=name)
    try:
        found = entry.load()
    except Exception as error:  # another author's package
        raise EngineError(f"the engine {name} of {entry.value} cannot be imported: {reason_of(error)}") from error
    if not isinstance(found, Registration) or found.name != name:
        raise EngineError(f"{entry.value} registers no engine {name}: expected a vosrt.engines.registry.Registration")
    return found


def plain_name(engine: str) -> str:
    """The name of an engine, given that or a former one."""
    if engine in (*UNREGISTERED, *names()):
        return engine
    for name in auto_order():
        if engine in registered(name).former_names:
            return name
    return engine


def fallback(device: DeviceKind) -> Registration:
    """Return the engine of a device that runs mask networks where the encoder's does not."""
    own = map(registered, auto_order())
    return next(each for each in own if each.fallback and device in each.devices)
