"""Video object segmentation learnt without labels: mark objects in one frame, get their masks in all.

model = vosrt.Model.load()
with model.stream() as stream:
    result = stream.start(first_frame, mask)     # u8 [H, W, 3] BGR, integers [H, W]
    for frame in frames:
        result = stream.step(frame)              # result.labels: u8 [H, W]
"""

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
from vosrt.streams import step_all
from vosrt.types import PropagationOptions, StepResult

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
    "load_bundle",
    "step_all",
]
