"""Bundles: the directory that export writes and the runtime reads.

    bundle/
        manifest.json     what the network is, how to run it, SHA-256 of every graph
        encoder.onnx      frames u8 [n, height, width, 3] BGR -> embedding f32 [n, h, w, K]
        encoder_int8.onnx the same network quantised, where the bundle has it: takes and gives the same

Nothing in a bundle is code. Reading one trusts nothing: the manifest's types and ranges are checked, keys that
this version does not know are refused, files must lie inside the directory and match their hash, and graphs must be
plain, self-contained and made of known operators (`vosrt.onnx_file`). Each graph is read once:
what was hashed and checked is what engines are given, whatever happens to the file meanwhile. A bundle is a directory
and never an archive, so nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vosrt._files import replacing, write_all
from vosrt.core.native import libvosrt
from vosrt.errors import BundleError
from vosrt.onnx_file import Graph, joined, read_graph
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
_MAX_MANIFEST_BYTES = 1 << 20


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
        bytes: its size.
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
        summary: one line for people.
        encoder: contract of the encoder graph.
        graphs: files by role; ``"encoder"`` is always there. ``"encoder_int8"`` is the same network quantised; it is
            there if the bundle's maker measured that it is good enough. An older vosrt passes it over.
        inference: how labels are propagated unless the caller says otherwise.
        size: default short side of the working frame in pixels, to which larger frames are shrunk; None is
            `vosrt.types.DEFAULT_SIZE`.
        enlarge_percent: smaller frames are enlarged to ``size``, but to no more than this percentage of their own.
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
        path: its directory.
        manifest: what it holds.
        graphs: content of the ONNX files by role, as it was checked.
    """

    path: Path
    manifest: Manifest
    graphs: Mapping[str, Graph] = field(default_factory=dict, repr=False, compare=False)

    def graph(self, name: str) -> Graph:
        """A graph as it was read and checked, for an engine.

        Raises:
            BundleError: the bundle has no graph of this name.
        """
        return self.graphs.get(name) or _read_graph(
            self.path, self._file(name), self.manifest.encoder.output_name, verify_hashes=False
        )

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
        return _folder_of(self.path, file) / file.file

    def _file(self, name: str) -> GraphFile:
        if name not in self.manifest.graphs:
            have = ", ".join(sorted(self.manifest.graphs))
            raise BundleError(f"bundle {self.path} has no graph {name!r}; it has: {have}")
        return self.manifest.graphs[name]


def load_bundle(path: Path | str, *, verify_hashes: bool = True) -> Bundle:
    """Read a bundle and check it.

    Args:
        path: the directory, or the name of a bundle that comes with the package, as a string: ``"default"`` and
            those of `packaged_bundles`. A directory of the same name is meant by ``"./default"``.
        verify_hashes: compare the SHA-256 of every file (sizes, and hashes of other bundles' files, always are).

    Raises:
        BundleError: it is missing, altered, unsafe, malformed or made by a newer vosrt.
    """
    root = _PACKAGED / path if is_packaged(path) else Path(path)
    if path == DEFAULT_NAME and not root.is_dir():
        raise BundleError("this installation has no default bundle; name a bundle directory or reinstall vosrt")
    try:
        manifest = _parse(_read_manifest(root), root / MANIFEST_NAME)
        embedding = manifest.encoder.output_name
        graphs = {
            role: _read_graph(root, file, embedding, verify_hashes=verify_hashes)
            for role, file in manifest.graphs.items()
        }
        _check_graphs(graphs, manifest)
    except OSError as error:
        raise BundleError(f"bundle {root} cannot be read: {error.strerror or error}") from error
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
    _parse(text, path)
    with replacing(path) as file:
        write_all(file, text)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(root: Path) -> bytes:
    if not root.exists():
        names = ", ".join(packaged_bundles())
        raise BundleError(f"no such bundle: {root}; expected {names} or a directory with {MANIFEST_NAME}")
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
    return content


def _read_graph(root: Path, file: GraphFile, embedding: str, *, verify_hashes: bool) -> Graph:
    """Read a graph, whose content is that of its file and of what the bundle adds.

    Args:
        embedding: name of the output that takes the place of those of the file, if it is added.
    """
    folder = _folder_of(root, file)
    shared = file.bundle is not None
    # A link must not lead to files that are no neighbours of this bundle.
    graph = _read_part(root, folder, file, inside=folder.parent if shared else root, verify=shared or verify_hashes)
    if file.adds is None:
        return graph
    added = _read_part(root, root, file.adds, inside=root, verify=verify_hashes)
    return joined(graph, added, embedding)


def _folder_of(root: Path, file: GraphFile) -> Path:
    """The bundle that a graph's file belongs to."""
    return root if file.bundle is None else Path(os.path.realpath(root)).parent / file.bundle


def _read_part(root: Path, folder: Path, part: GraphPart, *, inside: Path, verify: bool) -> Graph:
    path = folder / part.file
    _check_inside(inside, path)
    if not path.is_file():
        if folder != root:
            raise BundleError(f"bundle {root} lacks {part.file} of the bundle {folder}; copy both, side by side")
        raise BundleError(f"bundle {root} lacks its file {part.file}; copy the whole directory again")
    graph = read_graph(path, part.bytes)
    if verify and graph.sha256 != part.sha256:
        raise BundleError(
            f"{path} was altered: its SHA-256 is {graph.sha256[:12]}…, the manifest says {part.sha256[:12]}…; "
            "copy the bundle again"
        )
    return graph


def _check_graphs(graphs: Mapping[str, Graph], manifest: Manifest) -> None:
    """Have every graph be one that may be run, and the encoder's take and give what the manifest says."""
    spec = manifest.encoder
    for role, graph in graphs.items():
        names = (spec.input_name, spec.output_name, spec.channels) if role in ENCODER_ROLES else ()
        graph.check(*names)


def _check_inside(root: Path, path: Path) -> None:
    # Not Path.resolve, which raises RuntimeError for links in a circle before Python 3.13.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise BundleError(f"{path} leads out of the bundle through a link; files must lie inside {root}")


def _parse(text: bytes, path: Path) -> Manifest:
    """Have libvosrt check a manifest against ``schema.txt``, and read it."""
    libvosrt().call("vosrt_manifest_check", text, len(text), os.fsencode(path))
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
