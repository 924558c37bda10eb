"""Video object segmentation learnt without labels: mark objects in one frame, get their masks in all.

model = vosrt.Model.load()
with model.stream() as stream:
    result = stream.start(first_frame, mask)     # u8 [H, W, 3] BGR, integers [H, W]
    for frame in frames:
        result = stream.step(frame)              # result.labels: u8 [H, W]
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from vosrt import _telemetry as _telemetry  # first: nothing may import an engine before it

if TYPE_CHECKING:
    from vosrt.bundle import Bundle, load_bundle
    from vosrt.encoder import Embedding, WorkingFrame
    from vosrt.errors import (
        BrokenVideoError,
        BundleError,
        EngineError,
        InputError,
        MaskError,
        MissingExtraError,
        OptionError,
        OutputError,
        SessionError,
        SourceError,
        VosrtError,
        WorkError,
    )
    from vosrt.model import Model
    from vosrt.stream import PendingStep, Stream
    from vosrt.stream_batch import step_all
    from vosrt.types import PropagationOptions, StepResult

__version__ = _version("vosrt")

__all__ = [
    "BrokenVideoError",
    "Bundle",
    "BundleError",
    "Embedding",
    "EngineError",
    "InputError",
    "MaskError",
    "MissingExtraError",
    "Model",
    "OptionError",
    "OutputError",
    "PendingStep",
    "PropagationOptions",
    "SessionError",
    "SourceError",
    "StepResult",
    "Stream",
    "VosrtError",
    "WorkError",
    "WorkingFrame",
    "__version__",
    "load_bundle",
    "step_all",
]

# Where public names are; each of these imports those before it.
_MODULES = ("errors", "types", "bundle", "encoder", "model", "stream", "stream_batch")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a command can answer before NumPy is loaded."""
    for module in _MODULES if name in __all__ else ():
        if (found := getattr(_import_module(f"vosrt.{module}"), name, None)) is not None:
            return found
    raise AttributeError(f"module 'vosrt' has no attribute {name!r}")
