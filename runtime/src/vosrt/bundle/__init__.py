"""Bundles: the directory that export writes and the runtime reads.

    bundle/
        manifest.json     what the network is, how to run it, SHA-256 of every graph
        encoder.onnx      frames u8 [n, height, width, 3] BGR -> embedding f32 [n, h, w, K]
        encoder_int8.onnx the same network quantised, where the bundle has it: takes and gives the same

Nothing in a bundle is code. libvosrt reads one for every language, and trusts nothing: the manifest's types and ranges
are checked, keys that this version does not know are refused, files must lie inside the directory and match their hash,
and graphs must be plain, self-contained and made of known operators (``onnx_rules.cpp``). Each graph is read once:
what was hashed and checked is what engines are given, whatever happens to the file meanwhile. A bundle is a directory
and never an archive, so nothing is unpacked.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vosrt._files import replacing, write_all
from vosrt.core.library import Library
from vosrt.core.native import libvosrt
from vosrt.errors import BundleError
from vosrt.onnx_file import Graph
from vosrt.types import PropagationOptions

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
DEFAULT_NAME = "default"
_PACKAGED = Path(__file__).parents[1] / "bundles"

Feature = Literal["res3", "res4", "key"]
Family = Literal["correspondence", "mask-embedding"]

# Maps that the encoder of a mask-embedding bundle hands out besides the embedding, by the names of its outputs.
CONTEXT, RES3, RES2 = "context", "res3", "res2"
WeightPrecision = Literal["fp32", "fp16"]
Quantised = Literal["int8", "fp8"]
NO_FP8 = "vos-export quantise makes int8 alone, since what fp8 loses shows only on GPUs that have it (from Ada on)"
GraphPrecision = Literal["fp32", "fp16", "int8", "fp8"]

MAX_ROUNDS = 4  # of refinement, as ``schema.txt`` has it

_NEWER = ("bundle", "adds")  # keys of graphs


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
class GraphPart:
    """A file of a bundle.

    Attributes:
        file: its name relative to the bundle, with ``/`` between parts.
        sha256: hash of its content, 64 lower-case hexadecimal digits.
    """

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class GraphFile(GraphPart):
    """One ONNX graph of a bundle.

    Attributes:
        precision: of the stored weights; arithmetic is the engine's choice, but for ``"int8"`` and ``"fp8"``,
            where quantisation is part of the graph.
        bundle: the bundle that ``file`` belongs to, by the name of its folder, which lies beside this one's; None is
            this bundle.
        adds: a file of this bundle with further nodes and outputs. The graph is both files one after the other:
            protobuf merges them, as it does all parts of a message. Where that file declares the encoder's
            ``output_name``, its outputs take the place of those of ``file``.
    """

    precision: GraphPrecision
    bundle: str | None = None
    adds: GraphPart | None = None

    @property
    def quantised(self) -> Quantised | None:
        """The number format that quantisation has put into the graph; None where it has not."""
        return self.precision if self.precision in ("int8", "fp8") else None


def encoder_role(precision: str) -> str:
    """Role of the graph that an encoder runs in a precision, beside the one that is not quantised."""
    return f"encoder_{precision}" if precision in get_args(Quantised) else "encoder"


ENCODER_ROLES = ("encoder", *map(encoder_role, get_args(Quantised)))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        name: short name of the model, one line.
        trained: False for a network with random weights.
        graphs: files by role; ``"encoder"`` is always there. ``"encoder_int8"`` is the same network quantised; it is
            there if the bundle's maker measured that it is good enough. An older vosrt passes it over.
        inference: how labels are propagated unless the caller says otherwise.
        size: default short side of the working frame in pixels, to which larger frames are shrunk; None is
            `vosrt.types.DEFAULT_SIZE`.
        enlarge_percent: smaller frames are enlarged to ``size``, but to no more than this percentage of their own.
        verification: figures of the comparison that the export ended with.
        provenance: checkpoint hash, training, tool versions, licence.
        masks: contract of the further graphs; None for correspondence.
    """

    name: str
    trained: bool
    summary: str
    encoder: EncoderSpec
    graphs: Mapping[str, GraphFile]
    inference: PropagationOptions = field(default_factory=PropagationOptions)
    size: int | None = None
    enlarge_percent: int = 100
    verification: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    family: Family = "correspondence"
    masks: MaskSpec | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked.

    Attributes:
        graphs: content of the ONNX files by role, as it was checked.
    """

    path: Path
    manifest: Manifest
    graphs: Mapping[str, Graph] = field(repr=False, compare=False)

    def graph(self, name: str) -> Graph:
        """A graph as it was read and checked, for an engine.

        Raises:
            BundleError: the bundle has no graph of this name.
        """
        self._file(name)
        return self.graphs[name]

    @property
    def encoders(self) -> tuple[Graph, ...]:
        """The encoder in each of its precisions, as stored first; each says what it is quantised in."""
        graphs = self.manifest.graphs
        have = [role for role in ENCODER_ROLES if role in graphs]
        return tuple(replace(self.graph(role), quantised=graphs[role].quantised) for role in have)

    def encoder_for(self, precision: str) -> Graph:
        """The encoder's graph that is quantised in a precision; the one that ``"encoder"`` names where none is."""
        return next((each for each in self.encoders if each.quantised == precision), self.encoders[0])

    def graph_path(self, name: str) -> Path:
        """Path of a graph's ONNX file, without what the bundle adds to that: `graph` has all of it.

        Raises:
            BundleError: the bundle has no graph of this name.
        """
        file = self._file(name)
        return _path_of(self.path, file)

    def _file(self, name: str) -> GraphFile:
        if name not in self.manifest.graphs:
            have = ", ".join(sorted(self.manifest.graphs))
            raise BundleError(f"bundle {self.path} has no graph {name!r}; it has: {have}")
        return self.manifest.graphs[name]


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check it.

    Args:
        path: the directory, or the name of a bundle that comes with the package, as a string: ``"default"`` and
            those of `packaged_bundles`. A directory of the same name is meant by ``"./default"``.

    Raises:
        BundleError: it is missing, altered, unsafe, malformed or made by a newer vosrt.
    """
    root = _PACKAGED / path if is_packaged(path) else Path(path)
    if path == DEFAULT_NAME and not root.is_dir():
        raise BundleError("this installation has no default bundle; name a bundle directory or reinstall vosrt")
    if not root.exists():
        names = ", ".join(packaged_bundles())
        raise BundleError(f"no such bundle: {root}; expected {names} or a directory with {MANIFEST_NAME}")
    library, handle = libvosrt(), ctypes.c_void_p()
    library.call("vosrt_bundle_open", os.fsencode(root), ctypes.byref(handle))
    try:
        manifest = _manifest_of(_content(library, "vosrt_bundle_manifest", handle))
        graphs = {
            role: Graph(
                _path_of(root, file) if file.adds is None else root / file.adds.file,
                _content(library, "vosrt_bundle_graph_content", handle, role.encode()),
            )
            for role, file in manifest.graphs.items()
        }
    finally:
        library.plain("vosrt_bundle_close", handle)
    return Bundle(root, manifest, graphs)


def packaged_bundles() -> tuple[str, ...]:
    """Names of the bundles that come with the package, the default one first."""
    names = {folder.name for folder in _PACKAGED.iterdir() if folder.is_dir()} if _PACKAGED.is_dir() else set()
    return tuple(sorted(names, key=lambda name: (name != DEFAULT_NAME, name)))


def is_packaged(path: Path | str) -> bool:
    """Whether this is the name of a bundle that comes with the package, rather than a directory."""
    return path == DEFAULT_NAME or (isinstance(path, str) and path in packaged_bundles())


def packaged_name(folder: Path) -> str | None:
    """The name of the packaged bundle that a folder is; None for all others."""
    inside = folder.resolve()
    return inside.name if inside.parent == _PACKAGED.resolve() else None


def bundle_word(folder: Path) -> str:
    """What a person types for a bundle: the name of a packaged one, else its folder."""
    return packaged_name(folder) or str(folder)


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest to the file ``path``: the same manifest always gives the same bytes.

    Raises:
        BundleError: the manifest would not be accepted when read back.
        OSError: it cannot be written; an earlier one stands.
    """
    document = asdict(manifest)
    document["inference"]["size"] = document.pop("size")
    if (percent := document.pop("enlarge_percent")) != 100:  # an older vosrt reads those that enlarge nothing
        document["inference"]["enlarge_percent"] = percent
    for values, key in (
        (document, "masks"),
        *((graph, key) for graph in document["graphs"].values() for key in _NEWER),
    ):
        if values[key] is None:  # so that an older vosrt reads all bundles but those that need it
            del values[key]
    text = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="surrogatepass")
    libvosrt().call("vosrt_manifest_check", text, len(text), os.fsencode(path))
    with replacing(path) as file:
        write_all(file, text)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(library: Library, function: str, *arguments: Any) -> bytes:
    """A copy of the bytes that a function of an open bundle points to."""
    data, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.call(function, *arguments, ctypes.byref(data), ctypes.byref(size))
    return ctypes.string_at(data, size.value)


def _path_of(root: Path, file: GraphFile) -> Path:
    """The file of a graph, in this bundle or the one beside it."""
    folder = root if file.bundle is None else Path(os.path.realpath(root)).parent / file.bundle
    return folder / file.file


def _manifest_of(text: bytes) -> Manifest:
    document = json.loads(text)
    masks, inference = document.pop("masks", None), document.pop("inference")
    size, enlarge_percent = inference.pop("size"), inference.pop("enlarge_percent", 100)
    for former in ("window", "global_reference"):  # which earlier versions name the one value of
        inference.pop(former, None)
    return Manifest(
        encoder=EncoderSpec(**document.pop("encoder")),
        masks=None if masks is None else MaskSpec(**masks),
        inference=PropagationOptions(**inference),
        size=size,
        enlarge_percent=enlarge_percent,
        graphs={role: _graph_file(entry) for role, entry in document.pop("graphs").items()},
        **document,
    )


def _graph_file(entry: dict[str, Any]) -> GraphFile:
    adds = entry.pop("adds", None)
    return GraphFile(**entry, adds=None if adds is None else GraphPart(**adds))
