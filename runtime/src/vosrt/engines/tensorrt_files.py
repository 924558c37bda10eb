"""TensorRT engines on disk: built for one version, one architecture and one graph, and loaded for nothing else.

    bundle/engines/
        encoder-tensorrt-rtx-1.7.1.116-sm_86-fp16-feedd417fd8f.engine    what TensorRT wrote
        encoder-tensorrt-rtx-1.7.1.116-sm_86-fp16-feedd417fd8f.json      what it was built from and for, its SHA-256

An engine can always be built again from the ONNX graph beside it, so one that does not fit is passed over with the
reason, never tried.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from vosrt._files import replacing, write_all
from vosrt.bundle import bundle_word, packaged_name
from vosrt.cache import cache_root
from vosrt.engines.tensorrt_flavour import FLAVOURS, FlavourName
from vosrt.errors import EngineError

EnginePrecision = Literal["int8", "fp8", "fp16", "bf16", "fp32"]
Size: TypeAlias = tuple[int, int]

ENGINE_PRECISIONS: tuple[EnginePrecision, ...] = get_args(EnginePrecision)  # in the order "auto" prefers them
FOLDER, SUFFIX = "engines", ".engine"
SCHEMA = 2  # 2: batch

_SUFFIXES = {SUFFIX, ".json", ".cache"}
_MAX_RECORD_BYTES = 1 << 16
_MAX_PROFILES = 32
_MAX_SIDE = 16384
MAX_BATCH = 64
_HASH = re.compile("[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9A-Za-z]+(\.[0-9A-Za-z]+){1,5}")
_ARCHITECTURE = re.compile("sm_[0-9]{2,3}")
_NAME = re.compile("[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Frame sizes that an engine takes, height and width in pixels; it is tuned for the optimum.

    Attributes:
        minimum: smallest height and smallest width.
        optimum: the size to be fast at.
        maximum: largest height and largest width.
    """

    minimum: Size
    optimum: Size
    maximum: Size

    def takes(self, height: int, width: int, step: int = 1) -> bool:
        """Whether a frame of this size fits, or one whose map has a value per ``step`` pixels, rounded up."""
        (low, left), (high, right) = ((-(-y // step), -(-x // step)) for y, x in (self.minimum, self.maximum))
        return low <= height <= high and left <= width <= right

    def __str__(self) -> str:
        """As ``vos-export engine --sizes`` takes it."""
        parts = [f"{height}x{width}" for height, width in (self.minimum, self.optimum, self.maximum)]
        return parts[0] if len(set(parts)) == 1 else ":".join(parts)


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What one engine file is.

    Attributes:
        graph: its role in the bundle: ``"encoder"``, ``"mask_encoder"`` or ``"decoder"``.
        graph_sha256: of the ONNX file that it was built from.
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        version: of TensorRT; another one does not load it.
        architecture: of the GPU that it is for, as ``"sm_86"``.
        profiles: frame sizes that it takes, one optimisation profile each, in this order.
        batch: frames that it takes at once, at most; of a mask network, objects of a frame.
        recipe: version of the rewriting of the graph before it was built.
    """

    graph: str
    graph_sha256: str
    flavour: FlavourName
    version: str
    architecture: str
    precision: EnginePrecision
    profiles: tuple[Profile, ...]
    recipe: int
    layers: int
    build_seconds: float
    sha256: str
    bytes: int
    batch: int = 1

    @property
    def stem(self) -> str:
        """Name of its files without the suffix: the key that caches go by."""
        return (
            f"{self.graph}-{self.flavour}-{self.version}-{self.architecture}-{self.precision}-{self.graph_sha256[:12]}"
        )


@dataclass(frozen=True, kw_only=True)
class EngineTarget:
    """What an engine must have been built for to be loaded on this machine."""

    flavour: FlavourName
    version: str
    architecture: str
    graph_sha256: str
    graph: str = "encoder"

    def objection(self, record: EngineRecord) -> str:
        """Why an engine does not fit, empty if it does."""
        if record.flavour != self.flavour or record.version != self.version:
            return f"it is for {record.flavour} {record.version}"
        if record.architecture != self.architecture:
            return f"it is for {record.architecture}"
        if record.graph_sha256 != self.graph_sha256:
            return "it was built from another graph"
        return ""


def engine_folders(graph: Path, graph_sha256: str) -> tuple[Path, Path]:
    """Where engines of a bundle's graph may be: in the bundle, and in the user's cache."""
    return graph.parent / FOLDER, cache_root() / FOLDER / graph_sha256[:12]


def folder_for_engines(graph: Path, graph_sha256: str) -> Path:
    """Where a new engine goes: into the bundle, or into the user's cache where that is packaged or read-only."""
    beside, cached = engine_folders(graph, graph_sha256)
    theirs = packaged_name(graph.parent) is None and os.access(graph.parent, os.W_OK)
    return beside if theirs else cached


def holds_engines_only(folder: Path) -> bool:
    """Whether a folder is nothing but what ``vos-export engine`` writes, all of which can be made again."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(path.is_file() and not path.is_symlink() and path.suffix in _SUFFIXES for path in folder.iterdir())


def write_record(record: EngineRecord, folder: Path) -> Path:
    """Write an engine's record beside it; the same record always gives the same bytes.

    Raises:
        EngineError: the record would not be accepted when read back.
    """
    text = json.dumps({"schema": SCHEMA, **asdict(record)}, indent=2, sort_keys=True) + "\n"
    path = folder / f"{record.stem}.json"
    if parse_record(text, path) != record:
        raise EngineError(f"{path}: the record does not survive being written")
    with replacing(path) as file:
        write_all(file, text.encode())
    return path


def read_records(folder: Path) -> Iterator[tuple[Path, EngineRecord | EngineError]]:
    """Every record of a folder in the order of names, or what is wrong with it; engine files are not read."""
    for path in sorted(folder.glob("*.json")):
        try:
            _check_plain(path)
            if path.stat().st_size > _MAX_RECORD_BYTES:
                raise EngineError(
                    f"{path.name} has {path.stat().st_size} bytes; a record has at most {_MAX_RECORD_BYTES}"
                )
            record = parse_record(path.read_text(encoding="utf-8"), path)
            if path.stem != record.stem:
                raise EngineError(f"{path.name} describes {record.stem}")
        except (OSError, UnicodeDecodeError) as error:
            yield path, EngineError(f"{path.name} cannot be read: {error}")
        except EngineError as error:
            yield path, error
        else:
            yield path, record


def choose_engine(
    graph: Path, target: EngineTarget, precisions: tuple[EnginePrecision, ...]
) -> tuple[bytes, EngineRecord]:
    """The engine to load for a graph.

    Args:
        graph: the bundle's ONNX file; its engines are looked for beside it and in the user's cache.
        precisions: acceptable ones, best first.

    Returns:
        Content of the engine file, and its record.

    Raises:
        EngineError: none fits; the message says what is there and how to build one.
    """
    objections: list[str] = []
    fitting: list[tuple[int, Path, EngineRecord]] = []
    folders = engine_folders(graph, target.graph_sha256)
    for path, record in itertools.chain.from_iterable(map(read_records, folders)):
        if isinstance(record, EngineError):
            objections.append(str(record))
        elif record.flavour != target.flavour or record.graph != target.graph:
            continue
        elif why := target.objection(record):
            objections.append(f"{path.stem}: {why}")
        elif record.precision not in precisions:
            objections.append(f"{path.stem}: it computes in {record.precision}")
        else:
            fitting.append((precisions.index(record.precision), path.with_suffix(SUFFIX), record))
    for _, path, record in sorted(fitting, key=lambda each: each[0]):
        try:
            return read_engine(path, record), record
        except EngineError as error:
            objections.append(str(error))
    found = f" ({'; '.join(objections)})" if objections else ""
    raise EngineError(
        f"no {'/'.join(precisions)} engine for {target.flavour} {target.version} on {target.architecture} in "
        f"{' or '.join(map(str, folders))}{found}; build one with: vos-export engine {bundle_word(graph.parent)} "
        f"--flavour {FLAVOURS[target.flavour].option}"
    )


def read_engine(path: Path, record: EngineRecord) -> bytes:
    """Read an engine file; what is returned is what its record says.

    Raises:
        EngineError: it is missing, altered, or a link.
    """
    try:
        _check_plain(path)
        if (size := path.stat().st_size) != record.bytes:
            raise EngineError(f"{path.name} was altered: it has {size} bytes, its record says {record.bytes}")
        plan = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path.name} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise EngineError(f"{path.name} was altered: its SHA-256 is not the one in its record")
    return plan


def parse_record(text: str, path: Path) -> EngineRecord:
    """Read a record and trust nothing in it.

    Raises:
        EngineError: it is not one, or has values that none can have.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        return dict(pairs)

    try:
        document = json.loads(text, object_pairs_hook=unique)
        if not isinstance(document, dict) or set(document) != {"schema", *(each.name for each in fields(EngineRecord))}:
            raise ValueError("its keys are not those of an engine record")
        if document.pop("schema") != SCHEMA:
            raise ValueError("it was made by another vosrt")
        return _checked(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"{path.name} is no engine record: {' '.join(str(error).split())[:200]}") from error


def _checked(values: dict[str, Any]) -> EngineRecord:
    for name, pattern in (
        ("graph", _NAME),
        ("graph_sha256", _HASH),
        ("sha256", _HASH),
        ("version", _VERSION),
        ("architecture", _ARCHITECTURE),
    ):
        if type(values[name]) is not str or not pattern.fullmatch(values[name]):
            raise ValueError(f"{name} is {ascii(values[name])[:40]}")
    for name, choices in (("flavour", tuple(FLAVOURS)), ("precision", ENGINE_PRECISIONS)):
        if values[name] not in choices:
            raise ValueError(f"{name} is {ascii(values[name])[:40]}; expected one of {', '.join(choices)}")
    for name, low, high in (
        ("recipe", 1, 1 << 31),
        ("layers", 1, 1 << 31),
        ("bytes", 1, 1 << 40),
        ("batch", 1, MAX_BATCH),
    ):
        if type(values[name]) is not int or not low <= values[name] <= high:
            raise ValueError(f"{name} is {ascii(values[name])[:40]}; expected an integer from {low}")
    seconds = values["build_seconds"]
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
        raise ValueError(f"build_seconds is {ascii(seconds)[:40]}")
    profiles = values["profiles"]
    if type(profiles) is not list or not 1 <= len(profiles) <= _MAX_PROFILES:
        raise ValueError(f"profiles is {ascii(profiles)[:40]}; expected 1 to {_MAX_PROFILES}")
    checked = {**values, "profiles": tuple(_profile(each) for each in profiles), "build_seconds": float(seconds)}
    return EngineRecord(**checked)


def _profile(values: Any) -> Profile:
    if not isinstance(values, dict) or set(values) != {"minimum", "optimum", "maximum"}:
        raise ValueError("a profile has minimum, optimum and maximum")
    sizes = []
    for name in ("minimum", "optimum", "maximum"):
        size = values[name]
        if type(size) is not list or len(size) != 2 or not all(type(n) is int and 1 <= n <= _MAX_SIDE for n in size):
            raise ValueError(f"{name} is {ascii(size)[:40]}; expected height and width in pixels")
        sizes.append(cast(Size, tuple(size)))
    low, best, high = sizes
    if not all(low[i] <= best[i] <= high[i] for i in (0, 1)):
        raise ValueError("a profile is not in the order minimum, optimum, maximum")
    return Profile(minimum=low, optimum=best, maximum=high)


def _check_plain(path: Path) -> None:
    """A link could lead anywhere."""
    if path.is_symlink() or path.parent.is_symlink():
        raise EngineError(f"{path.name} is reached through a link; engines must lie in their own folder")
