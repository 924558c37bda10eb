"""Bundles: the directory that export writes and the runtime reads.

    bundle/
        manifest.json     what the network is, how to run it, SHA-256 of every graph
        encoder.onnx      frames u8 [n, height, width, 3] BGR -> embedding f32 [n, h, w, K]

Nothing in a bundle is code. Reading one trusts nothing: the manifest's types and ranges are checked, keys that
this version does not know are refused, files must lie inside the directory and match their hash, and graphs must be
plain and self-contained (`vosrt.onnx_file`). A bundle is a directory and never an archive, so nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from vosrt.errors import BundleError, OptionError
from vosrt.onnx_file import FLOAT, MAX_BYTES, UINT8, TensorType, read_interface
from vosrt.types import PropagationOptions

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
DEFAULT_NAME = "default"
_PACKAGED = Path(__file__).parent / "bundles"

Feature = Literal["res3", "res4", "key"]
Family = Literal["correspondence", "mask-embedding"]

# Maps that the encoder of a mask-embedding bundle hands out besides the embedding, by the names of its outputs.
CONTEXT, RES3, RES2 = "context", "res3", "res2"
WeightPrecision = Literal["fp32", "fp16"]
GraphPrecision = Literal["fp32", "fp16", "int8"]

MAX_ROUNDS = 4

# The graphs that a bundle of each family must hold.
_ROLES: dict[str, tuple[str, ...]] = {
    "correspondence": ("encoder",),
    "mask-embedding": ("encoder", "mask_encoder", "decoder"),
}
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_DEPTH = 32  # of objects and lists in a manifest
_MAX_GRAPHS = 16
_MAX_SIDE = 16384
_MAX_STRIDE = 64
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The encoder graph: frames in, one embedding per grid cell out.

    Attributes:
        channels: K, embedding channels.
        feature: the layer that the embedding comes from.
        stride: pixels of the working frame per grid cell.
        align_corners: where its features look: True, as published, if the corner cells do at the corner pixels; False
            if every cell does at the middle of its ``stride`` x ``stride`` pixels. Working frames are then whole
            numbers of cells.
        input_name: tensor u8 [n, height, width, 3], BGR.
        output_name: tensor f32 [n, h, w, K]; every cell has unit length.
        min_side: shortest side of a working frame, in pixels, that the graph accepts.
        max_side: longest side, in pixels.
    """

    channels: int
    feature: Feature
    stride: int = 8
    align_corners: bool = True
    input_name: str = "frames"
    output_name: str = "embedding"
    min_side: int = 16
    max_side: int = 4096

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Grid (h, w) of a working frame of height x width pixels: strided convolutions round up."""
        return -(-height // self.stride), -(-width // self.stride)

    def whole_cells(self, side: int) -> int:
        """A side of a working frame, in pixels, as this encoder wants it."""
        return side if self.align_corners else max(1, (2 * side + self.stride) // (2 * self.stride)) * self.stride


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """Mask encoder and decoder of a mask-embedding bundle, whose encoder does not align corners.

    Their graphs take and give, for one frame and its M objects:
    ``mask_encoder``: frames u8 [1, height, width, 3], masks f32 [M, height, width], context -> values f32 [M, h, w, V];
    ``decoder``: readout and values f32 [M, h, w, V], res3, res2 -> logits f32 [M, h2, w2] at a quarter of the frame.

    Attributes:
        value_channels: V.
        context: the encoder's output that is the mask encoder's ``context``.
        rounds: of refinement, unless the caller says otherwise.
        residual: whether the logits correct the coarse mask, instead of drawing a mask from nothing.
        feedback: whether refined masks are what later frames read. Without it they are shown alone, and each frame is
            refined from what was propagated: errors of the decoder cannot feed themselves.
    """

    value_channels: int
    context: Literal["context", "res3"]
    rounds: int = 2
    residual: bool = False
    feedback: bool = True


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One ONNX file of a bundle.

    Attributes:
        file: its name relative to the bundle, with ``/`` between parts.
        sha256: hash of its content, 64 lower-case hexadecimal digits.
        bytes: its size.
        precision: of the stored weights; arithmetic is the engine's choice, but for ``"int8"``, where quantisation
            is part of the graph.
    """

    file: str
    sha256: str
    bytes: int
    precision: GraphPrecision


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        name: short name of the model, one line.
        trained: False for a network with random weights.
        summary: one line for people.
        encoder: contract of the encoder graph.
        graphs: files by role; ``"encoder"`` is always there.
        inference: how labels are propagated unless the caller says otherwise.
        size: default short side of the working frame in pixels; None keeps the frame's own size.
        verification: figures of the comparison that the export ended with.
        provenance: checkpoint hash, training, tool versions, licence.
        family: the method.
        masks: contract of the further graphs; None for correspondence.
        schema: version of this format.
    """

    name: str
    trained: bool
    summary: str
    encoder: EncoderSpec
    graphs: Mapping[str, GraphFile]
    inference: PropagationOptions = field(default_factory=PropagationOptions)
    size: int | None = None
    verification: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    family: Family = "correspondence"
    masks: MaskSpec | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked.

    Attributes:
        path: its directory.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    def graph_path(self, name: str) -> Path:
        """Path of a graph's ONNX file.

        Raises:
            BundleError: the bundle has no graph of this name.
        """
        try:
            return self.path / self.manifest.graphs[name].file
        except KeyError:
            have = ", ".join(sorted(self.manifest.graphs))
            raise BundleError(f"bundle {self.path} has no graph {name!r}; it has: {have}") from None


def load_bundle(path: Path | str, *, verify_hashes: bool = True) -> Bundle:
    """Read a bundle and check it.

    Args:
        path: the directory, or the name of a bundle that comes with the package, as a string: ``"default"`` and
            those of `packaged_bundles`. A directory of the same name is meant by ``"./default"``.
        verify_hashes: compare the SHA-256 of every graph (sizes are always compared).

    Raises:
        BundleError: it is missing, altered, unsafe, malformed or made by a newer vosrt.
    """
    root = _PACKAGED / path if is_packaged(path) else Path(path)
    if path == DEFAULT_NAME and not root.is_dir():
        raise BundleError("this installation has no default bundle; name a bundle directory or reinstall vosrt")
    try:
        manifest = _parse(_read_manifest(root), root / MANIFEST_NAME)
        for graph in manifest.graphs.values():
            _check_file(root, graph, verify_hashes)
        _check_graphs(root, manifest)
    except OSError as error:
        raise BundleError(f"bundle {root} cannot be read: {error.strerror or error}") from error
    return Bundle(root, manifest)


def packaged_bundles() -> tuple[str, ...]:
    """Names of the bundles that come with the package, the default one first."""
    names = {folder.name for folder in _PACKAGED.iterdir() if folder.is_dir()} if _PACKAGED.is_dir() else set()
    return tuple(sorted(names, key=lambda name: (name != DEFAULT_NAME, name)))


def is_packaged(path: Path | str) -> bool:
    """Whether this is the name of a bundle that comes with the package, rather than a directory."""
    return path == DEFAULT_NAME or (isinstance(path, str) and path in packaged_bundles())


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest to the file ``path``: the same manifest always gives the same bytes.

    Raises:
        BundleError: the manifest would not be accepted when read back.
    """
    document = asdict(manifest)
    document["inference"]["size"] = document.pop("size")
    if manifest.masks is None:
        del document["masks"]
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    _parse(text, path)
    path.write_text(text, encoding="utf-8", newline="\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(root: Path) -> str:
    if not root.exists():
        raise BundleError(f"no such bundle: {root}; expected a directory with {MANIFEST_NAME}")
    if not root.is_dir():
        raise BundleError(f"{root} is a file; a bundle is a directory with {MANIFEST_NAME}")
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST_NAME}; make one with vos-export")
    _check_inside(root, path)
    with path.open("rb") as file:
        content = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(content) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {_MAX_MANIFEST_BYTES}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _check_file(root: Path, graph: GraphFile, verify_hashes: bool) -> None:
    path = root / graph.file
    _check_inside(root, path)
    if not path.is_file():
        raise BundleError(f"bundle {root} lacks its file {graph.file}; copy the whole directory again")
    size = path.stat().st_size
    if size != graph.bytes:
        raise BundleError(
            f"{path} was altered: it has {size} bytes, the manifest says {graph.bytes}; copy the bundle again"
        )
    if verify_hashes and (found := file_sha256(path)) != graph.sha256:
        raise BundleError(
            f"{path} was altered: its SHA-256 is {found[:12]}…, the manifest says {graph.sha256[:12]}…; "
            "copy the bundle again"
        )


def _check_graphs(root: Path, manifest: Manifest) -> None:
    """Have every graph be one that may be run, and the encoder's take and give what the manifest says."""
    interfaces = {role: read_interface(root / graph.file) for role, graph in manifest.graphs.items()}
    spec, found = manifest.encoder, interfaces["encoder"]
    for kind, declared, name, element, last in (
        ("input", found.inputs, spec.input_name, UINT8, 3),
        ("output", found.outputs, spec.output_name, FLOAT, spec.channels),
    ):
        tensor = declared.get(name, TensorType(0, ()))
        if tensor.element != element or len(tensor.shape) != 4 or tensor.shape[3] != last:
            wanted = f"{'uint8' if element == UINT8 else 'float32'} [n, height, width, {last}]"
            have = ", ".join(f"{_shown(key)} {_shown(list(value.shape))}" for key, value in [*declared.items()][:3])
            raise BundleError(
                f"{root / manifest.graphs['encoder'].file}: its {kind}s are {have or 'none'}; the manifest says "
                f"{name!r} {wanted}; export the bundle again"
            )


def _check_inside(root: Path, path: Path) -> None:
    # Not Path.resolve, which raises RuntimeError for links in a circle before Python 3.13.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise BundleError(f"{path} leads out of the bundle through a link; files must lie inside {root}")


def _parse(text: str, path: Path) -> Manifest:
    document = _Section(_load_json(text, path), path, "")
    schema = document.integer("schema", 1, 1 << 31)
    if schema > SCHEMA:
        raise BundleError(
            f"{path} was made by a newer vosrt (schema {schema}; this one reads up to {SCHEMA}); upgrade vosrt"
        )
    encoder = document.section("encoder")
    inference = document.section("inference")
    graphs = document.section("graphs")
    family = cast(Family, document.choice("family", tuple(_ROLES)))
    manifest = Manifest(
        schema=schema,
        family=family,
        masks=_masks(document.section("masks")) if family == "mask-embedding" else None,
        name=document.text("name", 100),
        trained=document.flag("trained"),
        summary=document.text("summary", 1000),
        encoder=EncoderSpec(
            channels=encoder.integer("channels", 1, 4096),
            feature=cast(Feature, encoder.choice("feature", ("res3", "res4", "key"))),
            stride=encoder.integer("stride", 1, _MAX_STRIDE),
            align_corners=encoder.flag("align_corners") if "align_corners" in encoder.names() else True,  # it is newer
            input_name=encoder.text("input_name", 100, _TENSOR_NAME),
            output_name=encoder.text("output_name", 100, _TENSOR_NAME),
            min_side=encoder.integer("min_side", 1, _MAX_SIDE),
            max_side=encoder.integer("max_side", 1, _MAX_SIDE),
        ),
        size=inference.optional_integer("size", 8, _MAX_SIDE),
        inference=_propagation(inference),
        graphs=_graphs(graphs),
        verification=document.section("verification").rest(),
        provenance=document.section("provenance").rest(),
    )
    if manifest.masks is not None and manifest.encoder.align_corners:
        encoder.fail("align_corners", "false in a mask-embedding bundle; export it again")
    if manifest.encoder.min_side > manifest.encoder.max_side:
        encoder.fail("min_side", "at most max_side")
    for role in _ROLES[family]:
        if role not in manifest.graphs:
            graphs.fail(role, f"the {role.replace('_', ' ')}'s file")
    for section in (document, encoder, inference):
        section.done()
    return manifest


def _graphs(section: _Section) -> dict[str, GraphFile]:
    roles = section.names()
    if len(roles) > _MAX_GRAPHS:
        raise BundleError(f"{section.path}: graphs has {len(roles)} entries; expected at most {_MAX_GRAPHS}")
    for role in roles:
        if not _ROLE.fullmatch(role):
            raise BundleError(f"{section.path}: graphs has the entry {_shown(role)}; expected names like 'encoder'")
    return {role: _graph(section.section(role)) for role in roles}


def _masks(section: _Section) -> MaskSpec:
    masks = MaskSpec(
        value_channels=section.integer("value_channels", 1, 4096),
        context=cast(Literal["context", "res3"], section.choice("context", (CONTEXT, RES3))),
        rounds=section.integer("rounds", 0, MAX_ROUNDS),
        residual=section.flag("residual"),
        feedback=section.flag("feedback") if "feedback" in section.names() else MaskSpec.feedback,  # it is newer
    )
    section.done()
    return masks


def _graph(section: _Section) -> GraphFile:
    graph = GraphFile(
        file=section.text("file", 200, _FILE_NAME),
        sha256=section.text("sha256", 64, re.compile("[0-9a-f]{64}")),
        bytes=section.integer("bytes", 1, MAX_BYTES),
        precision=cast(GraphPrecision, section.choice("precision", ("fp32", "fp16", "int8"))),
    )
    section.done()
    return graph


def _propagation(section: _Section) -> PropagationOptions:
    """Options absent from the manifest keep their default: they are newer than the bundle."""
    given: dict[str, Any] = {}
    for option in fields(PropagationOptions):
        if option.name in section.names():
            given[option.name] = section.like(option.name, option.default)
    try:
        return PropagationOptions(**given)
    except OptionError as error:
        raise BundleError(f"{section.path}: inference: {error}") from error


def _load_json(text: str, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {_shown(key)} occurs twice in one object")
            found[key] = value
        return found

    def finite(number: str) -> float:
        value = float(number)
        if not -1e300 < value < 1e300:
            raise ValueError(f"{_shown(number)} is not a finite number")
        return value

    try:
        document = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
        _check_depth(document)
        return document
    except json.JSONDecodeError as error:
        raise BundleError(f"{path} is not JSON: {error}; copy the bundle again") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be used: {error}") from error


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(_MAX_DEPTH):
        lists = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in lists for value in values]
    if level:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "…"


class _Section:
    """One JSON object being read: typed access by key, and what was never asked for is an error."""

    def __init__(self, values: Any, path: Path, where: str) -> None:
        self.path = path
        self._where = where
        if not isinstance(values, dict):
            raise BundleError(f"{path}: {where or 'the manifest'} is {_shown(values)}; expected a JSON object")
        self._values: dict[str, Any] = values
        self._seen: set[str] = set()

    def names(self) -> list[str]:
        return list(self._values)

    def fail(self, key: str, expected: str) -> NoReturn:
        name = f"{self._where}.{key}" if self._where else key
        if key not in self._values:
            raise BundleError(f"{self.path}: {_shown(name)} is missing; expected {expected}")
        raise BundleError(f"{self.path}: {_shown(name)} is {_shown(self._values[key])}; expected {expected}")

    def section(self, key: str) -> _Section:
        where = f"{self._where}.{key}" if self._where else key
        if not isinstance(self._get(key), dict):
            self.fail(key, "a JSON object")
        return _Section(self._values[key], self.path, where)

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._get(key)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}" if low < high else str(low))
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self._get(key) is None and key in self._values else self.integer(key, low, high)

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if type(value) is not bool:
            self.fail(key, "true or false")
        return value

    def text(self, key: str, longest: int, pattern: re.Pattern[str] | None = None) -> str:
        value = self._get(key)
        if type(value) is not str or not value or len(value) > longest or not value.isprintable():
            self.fail(key, f"1 to {longest} printable characters")
        if pattern and not pattern.fullmatch(value):
            what = "a plain file name inside the bundle" if pattern is _FILE_NAME else f"text like {pattern.pattern}"
            self.fail(key, what)
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self._get(key)
        if value not in choices:
            self.fail(key, " or ".join(map(repr, choices)))
        return cast(str, value)

    def like(self, key: str, example: object) -> Any:
        """The value, which must have the JSON type of ``example``."""
        value = self._get(key)
        wanted = (int, float) if type(example) is float else (type(example),)
        if type(value) not in wanted:
            self.fail(key, f"a value like {example!r}")
        return value

    def rest(self) -> dict[str, Any]:
        return self._values

    def done(self) -> None:
        if unknown := sorted(set(self._values) - self._seen):
            raise BundleError(
                f"{self.path}: {_shown(unknown[0])} in {self._where or 'the manifest'} is not known to this vosrt; "
                "correct it or upgrade vosrt"
            )

    def _get(self, key: str) -> Any:
        self._seen.add(key)
        return self._values.get(key)
