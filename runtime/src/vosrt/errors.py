"""Everything vosrt raises on purpose.

    VosrtError
    ├── InputError              something the user gave is wrong            (CLI exit code 2)
    │   ├── SourceError         a video, folder, camera or URL cannot be read
    │   ├── MaskError           a mask, box or polygon does not fit
    │   ├── BundleError         a bundle is missing, altered, unsafe or too new
    │   ├── SessionError        a saved stream is damaged, or was saved with another network
    │   ├── OptionError         an option has an impossible value
    │   └── OutputError         the place for results cannot be written
    ├── MissingExtraError       an optional package is needed (names the pip command; exit code 2)
    └── WorkError               the work itself failed                      (CLI exit code 1)
        ├── EngineError         an engine failed to load or to run
        └── BrokenVideoError    a video broke half-way; what came before is kept

Each message is one line: what was given, what was expected, what to do.
"""

from __future__ import annotations


class VosrtError(Exception):
    """Base of all errors that vosrt raises on purpose.

    Args:
        reason: the part of it that says what is wrong; the whole line if left out.
        remedy: the command or act that mends it, where that is part of the line.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, reason: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.reason, self.remedy = reason or message, remedy


class InputError(VosrtError):
    """Something the user gave is wrong."""

    exit_code = 2


class SourceError(InputError):
    """A video, frame folder, camera or URL cannot be read."""


class MaskError(InputError):
    """A mask, box or polygon does not fit the video or the format."""


class BundleError(InputError):
    """A bundle is missing, altered, unsafe or too new."""


class SessionError(InputError):
    """A saved stream is damaged, or was saved with another network."""


class OptionError(InputError):
    """An option has an impossible value."""


class OutputError(InputError):
    """The place for results cannot be written."""


class MissingExtraError(VosrtError):
    """An optional package is needed.

    Args:
        what: what was asked for, e.g. ``"the OpenVINO engine"``.
        extra: the extra of this distribution that brings it, e.g. ``"openvino"``.
    """

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        reason, remedy = f"{what} is not installed", f"pip install 'vosrt[{extra}]'"
        super().__init__(f"{reason}; install it with: {remedy}", reason=reason, remedy=remedy)
        self.extra = extra


class WorkError(VosrtError):
    """The work itself failed although the input was accepted."""


class EngineError(WorkError):
    """An engine failed to load or to run."""


class BrokenVideoError(WorkError):
    """A video broke half-way.

    Args:
        frame_index: index of the first frame that could not be read (from 0).
    """

    def __init__(self, message: str, frame_index: int) -> None:
        super().__init__(message)
        self.frame_index = frame_index
