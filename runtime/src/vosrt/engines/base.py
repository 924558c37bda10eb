"""The one plug point for neural-network back ends: an engine runs one graph of a bundle."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from vosrt.arrays import DeviceKind, DeviceTensor

LARGEST_BATCH = 16

Input: TypeAlias = NDArray[Any] | DeviceTensor


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and why it was chosen.

    Attributes:
        name: ``"openvino"``, ``"cpu"``, ``"fake"`` …
        precision: arithmetic inside the graph: ``"fp32"``, ``"tf32"`` (fp32 whose products are rounded to 10 bits of
            fraction), ``"bf16"``, ``"fp16"``, ``"int8"`` or ``"fp8"``.
        version: versions of the libraries that run it.
        reason: one sentence on why this engine runs, naming faster ones that were refused.
    """

    name: str
    precision: str
    version: str
    reason: str


class Engine(Protocol):
    """Runs one graph. Implementations are thread-safe and keep no state between calls."""

    @property
    def info(self) -> EngineInfo:
        """What runs and why."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on named host arrays and return its named outputs.

        Raises:
            EngineError: the back end failed; the message carries its own words.
        """


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that can leave its outputs where it computed them, for a core that works there too."""

    @property
    def device(self) -> DeviceKind:
        """Which memory `run_on_device` leaves outputs in."""

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Run the graph on named arrays and return its named outputs in the engine's own memory.

        Args:
            inputs: in host memory, or in the memory that outputs are left in. Those are whole for work that is queued
                on the stream that outputs name, or whole already where they name none.

        Raises:
            EngineError: the back end failed; the message carries its own words.
        """


class Sequel(Protocol):
    """What follows a network on its stream, for one video after one frame."""

    @property
    def kind(self) -> Hashable:
        """A graph of it fits as long as this is the same."""

    @property
    def graphs(self) -> Any:
        """Where graphs of it and the network are kept; the engine fills it."""

    def queue(self, arrays: Mapping[str, DeviceTensor]) -> None:
        """Queue it on the stream of these arrays, which may be a stream that is being captured.

        Args:
            arrays: the network's inputs, as it read them, and its outputs, by name.
        """

    def replayed(self) -> None:
        """Take note that a graph of it was queued."""


@runtime_checkable
class SequelEngine(DeviceEngine, Protocol):
    """A device engine that can record its network and what follows it as one CUDA graph."""

    @property
    def stream(self) -> int:
        """What the network is queued on, as an integer handle."""

    def run_with(self, inputs: Mapping[str, Input], sequel: Sequel) -> None:
        """Run the graph and what follows it; one launch does both once they came twice as they are.

        Args:
            inputs: as for ``run_on_device``.
            sequel: is queued on the stream that outputs are written on.

        Raises:
            EngineError: the back end failed; the message carries its own words.
        """


def largest_batch(engine: Engine) -> int:
    """Frames that an engine takes in one run; one that does not say (``largest_batch``) takes `LARGEST_BATCH`."""
    return int(getattr(engine, "largest_batch", LARGEST_BATCH))
