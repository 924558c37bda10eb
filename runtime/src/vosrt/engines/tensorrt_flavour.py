"""The two TensorRTs, which share one API: `tensorrt` for data centres and Jetson, `tensorrt_rtx` for RTX cards."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from vosrt.engines.static_shape import one_line
from vosrt.errors import EngineError, MissingExtraError, VosrtError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Flavour:
    """One of them.

    Attributes:
        name: also the first part of the names of its engine files.
        option: what ``vos-export engine --flavour`` calls it.
        module: what to import.
        oldest: the first version that has all that is used here.
    """

    name: FlavourName
    option: str
    module: str
    oldest: tuple[int, int]

    def load(self) -> ModuleType:
        """Import it when it is needed, not with vosrt.

        Raises:
            MissingExtraError: TensorRT-RTX is not installed.
            EngineError: TensorRT is not installed, or the one that is is broken or too old.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError:
            raise self.missing() from None
        except (ImportError, OSError) as error:
            raise EngineError(f"{self.name} is installed but cannot be imported: {one_line(error)}") from error
        version = str(module.__version__)
        if tuple(int(part) for part in version.split(".")[:2]) < self.oldest:
            raise EngineError(
                f"{self.name} {version} is installed; {self.oldest[0]}.{self.oldest[1]} or newer is needed: "
                f"pip install --upgrade {self.module}"
            )
        return module

    def missing(self) -> VosrtError:
        """The error that says how to install it."""
        if self.name == "tensorrt-rtx":
            return MissingExtraError("TensorRT-RTX", "tensorrt")
        return MissingPackageError("TensorRT", "tensorrt cuda-bindings")


class MissingPackageError(MissingExtraError):
    """A package is needed that no extra brings, since it does not go with those that do."""

    def __init__(self, what: str, packages: str) -> None:
        VosrtError.__init__(self, f"{what} is not installed; install it with: pip install {packages}")
        self.extra = ""


TENSORRT = Flavour("tensorrt", "tensorrt", "tensorrt", (10, 0))
TENSORRT_RTX = Flavour("tensorrt-rtx", "rtx", "tensorrt_rtx", (1, 0))
FLAVOURS: dict[str, Flavour] = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
