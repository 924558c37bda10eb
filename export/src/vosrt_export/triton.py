"""``vos-export triton``: a bundle as a model of Triton Inference Server, for its Python backend."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vosrt._files import write_file
from vosrt.errors import OptionError, OutputError
from vosrt.triton import BUNDLE
from vosrt.types import WorkingSize
from vosrt_export.copying import copy_bundle

CONFIG = "config.pbtxt"
_PROGRAM = '''"""A bundle of vosrt as a model of Triton Inference Server; vosrt is installed in the server's Python."""

from vosrt.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
# A batch of one: requests of different sequences are answered one by one, in the order in which they came.
_TEMPLATE = """# Written by vos-export triton; see vosrt.triton.
name: "{name}"
backend: "python"
max_batch_size: 1
input [
  {{ name: "FRAME" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "MASK" data_type: TYPE_UINT8 dims: [ -1, -1 ] optional: true }}
]
output [
  {{ name: "LABELS" data_type: TYPE_UINT8 dims: [ -1, -1 ] }},
  {{ name: "RESULT" data_type: TYPE_STRING dims: [ 1 ] }}
]
sequence_batching {{
  max_sequence_idle_microseconds: {idle}
  oldest {{ max_candidate_sequences: {sessions} }}
  control_input [
    {{ name: "START" control [ {{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "END" control [ {{ kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "READY" control [ {{ kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }} ] }}
  ]
}}
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
{parameters}
"""


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How the server runs the model.

    Attributes:
        name: of the model, which is also its folder's.
        size: working size; None is the bundle's.
        engine: as of `Model.load`, like the two that follow.
        sessions: streams at once in each instance.
        idle_s: seconds after which the server ends a sequence that says nothing.
        instances: copies of the model, each with all `threads`.
    """

    name: str = "vosrt"
    size: WorkingSize = None
    engine: str = "auto"
    precision: str = "auto"
    threads: int = 0
    sessions: int = 16
    idle_s: float = 60.0
    instances: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,99}", self.name):
            raise OptionError(f"--name is {self.name!r}; expected letters, digits, _, . and -, with a letter first")
        for name in ("engine", "precision"):
            if not re.fullmatch(r"[a-z0-9-]+", getattr(self, name)):
                raise OptionError(
                    f"--{name} is {getattr(self, name)!r}; expected auto, or one that vos-run doctor lists"
                )
        for name, least in (("threads", 0), ("sessions", 1), ("instances", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"--{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 < self.idle_s <= 1e6:
            raise OptionError(f"--idle is {self.idle_s:g}; expected more than 0, and at most a million seconds")


def config_of(options: TritonOptions) -> str:
    """Return the content of ``config.pbtxt``, a ``ModelConfig`` of Triton's in protobuf's text format."""
    parameters = {
        "engine": options.engine,
        "precision": options.precision,
        "size": options.size or "",
        "threads": options.threads,
    }
    return _TEMPLATE.format(
        name=options.name,
        idle=round(1e6 * options.idle_s),
        sessions=options.sessions,
        instances=options.instances,
        parameters="\n".join(
            f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()
        ),
    )


def write_model(bundle: str, repository: Path, options: TritonOptions) -> Path:
    """Write a model into a repository. Its ``config.pbtxt``, without which no server takes it, is written last.

    Args:
        bundle: directory, or the name of a packaged one.

    Returns:
        The model's folder.

    Raises:
        BundleError: the bundle is not whole.
        OutputError: the model exists, or cannot be written.
    """
    folder = repository / options.name
    if folder.exists():
        raise OutputError(f"{folder} is there already; remove it, or choose another --name")
    version = folder / "1"
    try:
        version.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{version}: cannot be made ({error.strerror}); choose another folder with -o") from error
    copy_bundle(bundle, version / BUNDLE)
    write_file(version / "model.py", _PROGRAM)
    write_file(folder / CONFIG, config_of(options))
    return folder
