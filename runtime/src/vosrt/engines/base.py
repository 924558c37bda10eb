"""The one plug point for neural-network back ends: an engine runs one graph of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and why it was chosen.

    Attributes:
        name: ``"openvino"``, ``"cpu"``, ``"fake"`` …
        precision: arithmetic inside the graph, ``"fp32"`` or ``"bf16"``.
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
