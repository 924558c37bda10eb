"""The two TensorRTs, which share one API: `tensorrt` for data centres and Jetson, `tensorrt_rtx` for RTX cards."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from vosrt.errors import EngineError, MissingExtraError, VosrtError
from vosrt.text import reason_of

FlavourName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Flavour:
    """One of them.

    Attributes:
        name: also the first part of the names of its engine files.
        option: what ``vos-export engine --flavour`` calls it.
        oldest: the first version that has all that this engine uses.
    """

    name: FlavourName
    option: str
    module: str
    oldest: tuple[int, int]

    def load(self) -> ModuleType:
        """Import it when it is needed, not with vosrt.

        Raises:
            MissingExtraError: it is not installed.
            EngineError: the one that is installed is broken or too old.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError:
            raise self.missing() from None
        except (ImportError, OSError) as error:
            raise EngineError(f"{self.name} is installed but cannot be imported: {reason_of(error)}") from error
        version = str(module.__version__)
        if tuple(int(part) for part in version.split(".")[:2]) < self.oldest:
            reason, remedy = f"{self.name} {version} is installed", f"pip install --upgrade {self.module}"
            needed = f"{self.oldest[0]}.{self.oldest[1]} or newer is needed"
            raise EngineError(f"{reason}; {needed}: {remedy}", reason=f"{reason}; {needed}", remedy=remedy)
        return module

    def missing(self) -> VosrtError:
        """The error that says how to install it."""
        return MissingExtraError("TensorRT-RTX" if self.name == "tensorrt-rtx" else "TensorRT", self.name)


TENSORRT = Flavour("tensorrt", "tensorrt", "tensorrt", (10, 1))  # device_memory_size_v2
TENSORRT_RTX = Flavour("tensorrt-rtx", "rtx", "tensorrt_rtx", (1, 0))
FLAVOURS: dict[str, Flavour] = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
_RTX = ("sm_75", "sm_86", "sm_89", "sm_120", "sm_121")  # cards that TensorRT-RTX is made for


def flavour_for(architecture: str) -> Flavour:
    """Return the TensorRT that is made for a GPU.

    Args:
        architecture: as in ``"sm_90"``.
    """
    return TENSORRT_RTX if architecture in _RTX else TENSORRT
