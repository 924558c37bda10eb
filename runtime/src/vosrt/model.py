"""A bundle ready to run: engines loaded, nothing of any video held."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from vosrt.bundle import MAX_ROUNDS, Bundle, Manifest, load_bundle
from vosrt.core.memory import create_memory
from vosrt.cuda import Gpu, open_device, usable_device
from vosrt.encoder import Embedding, FrameArray, FrameEncoder, check_frame, stays_on_gpu
from vosrt.engines.base import Engine, EngineInfo
from vosrt.engines.isolated import isolated_encoder, isolated_mask_engine
from vosrt.engines.mask_axes import MASK_AXES
from vosrt.engines.nvidia import has_gpu
from vosrt.engines.registry import auto_order, on_processor, plain_name
from vosrt.engines.select import create_encoder_engine, create_mask_engine
from vosrt.errors import BundleError, InputError, OptionError, VosrtError
from vosrt.locking import NotCopied, keep_in_children
from vosrt.refinement import Refinement
from vosrt.stream import LabelsOn, MaskArray, Stream
from vosrt.types import (
    DEFAULT_SIZE,
    ModelPrecision,
    Precision,
    PropagationOptions,
    U8Array,
    WorkingSize,
    check_threads,
)

if TYPE_CHECKING:
    from vosrt.budget import BudgetedStream
    from vosrt.directions import Direction
    from vosrt.prompt.onnx import OnnxSegmenter
    from vosrt.prompt.points import BoolArray, Box, Segmenter
    from vosrt.video.base import SegmentedFrame

if TYPE_CHECKING:
    from vosrt.cuda.network import NetworkOnGpu


_log = logging.getLogger(__name__)


class Model(NotCopied):
    """A network and its settings. Immutable; shared by streams and threads.

    In a process that was forked, a model goes on if its engine has one thread (``threads=1``); otherwise it is
    refused, and the process loads its own.

    Args:
        engines: per graph of the bundle, what runs it; ``"encoder"`` is needed.
        precision: of the products in matching, see `load`.
        threads: of the native core, see `load`.
        source: where the bundle came from, for `describe`.
        device: of the streams' memories, see `load`.
        segmenter: see `load`.
    """

    _instead = "load it in each process, or share it between threads"

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        *,
        precision: Precision = "auto",
        threads: int = 0,
        source: str = "",
        device: str = "cpu",
        segmenter: OnnxSegmenter | None = None,
    ) -> None:
        self._device = device
        self._segmenter = segmenter
        self._threads = check_threads(threads)
        gpu = open_device(device)
        self._core = None if gpu is None else gpu.describe()  # early: the GPU may be lost or full later
        self._manifest = manifest
        self._engines = dict(engines)
        self._precision: Precision = precision
        self._source = source
        self._no_gpu = ""  # why the device "auto" is none
        has_threads = self._threads != 1 or gpu is not None or stays_on_gpu(self._engines["encoder"])
        self._encoder = FrameEncoder(
            manifest.encoder,
            self._engines["encoder"],
            manifest.size,
            None if gpu is None else gpu.number,
            enlarge_percent=manifest.enlarge_percent,
            has_threads=has_threads,
        )
        for engine in self._engines.values():
            keep_in_children(engine)
        self._clicking = threading.Lock()
        self._clicked: tuple[object, Segmenter] | None = None  # the frame that came last
        self._gpu = gpu
        self._mask_networks = None if gpu is None else _mask_networks(self._engines, gpu)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle = "default",
        *,
        engine: str = "auto",
        precision: ModelPrecision = "auto",
        threads: int = 0,
        device: str = "cpu",
        isolated: bool = False,
        segmenter: str = "",
    ) -> Model:
        """Load a bundle and start an engine for it.

        Args:
            bundle: a bundle's directory; ``"default"`` is the one that comes with the package.
            engine: ``"auto"`` (the fastest that runs on this machine), one that ``vos-run doctor`` lists, or ``"fake"``
                for tests.
            precision: of the network: ``"fp32"``, ``"bf16"``, ``"fp16"`` (TensorRT), ``"int8"`` or ``"fp8"`` (bundles
                that carry it), or ``"auto"``: int8 where the bundle carries it and the processor has 8-bit dot
                products, else bf16 where the processor has that natively, on a GPU the narrowest that the engine has.
                Matching follows it in fp32 and bf16, and is ``"auto"`` otherwise.
            threads: of the engine and of each stream's core; 0 is one per processor.
            device: where streams remember and match: ``"cpu"``, or ``"cuda"`` or ``"cuda:N"`` for an NVIDIA GPU, on
                which the embeddings of engines that run there stay. ``"auto"`` is a GPU that works, unless an engine of
                the processor, fp32 or isolation is asked for; `describe` says why it is not.
            isolated: run each network in a process of its own, for bundles from strangers: one that crashes its engine
                is an `EngineError` then. It needs device ``"cpu"`` and an engine of the processor.
            segmenter: ``"ENCODER.onnx,DECODER.onnx"``, a pair like SAM that takes the place of the bundle's features in
                `segment`; its files are run as they are, so take only those that you trust.

        Raises:
            BundleError: the bundle is missing, altered or made by a newer vosrt.
            OptionError: an unknown engine, precision or device, one without the other, or a GPU that cannot be used.
            MissingExtraError: the engine is not installed; the message has the pip command.
            EngineError: the engine cannot run the bundle.
        """
        if precision not in get_args(ModelPrecision):
            raise OptionError(f"precision is {precision!r}; expected {', '.join(get_args(ModelPrecision))}")
        check_threads(threads)
        if not isinstance(bundle, str | os.PathLike | Bundle):
            raise BundleError(f"bundle is {bundle!r}; expected a directory, the name of a packaged one, or a Bundle")
        device, why = choose_device(device, engine=engine, precision=precision, isolated=isolated)
        gpu = open_device(device)
        if isolated and (gpu is not None or not on_processor(plain_name(engine))):
            what = f"device is {device!r}" if gpu is not None else f"engine is {engine!r}"
            usable = " or ".join(repr(name) for name in auto_order() if on_processor(name))
            raise OptionError(
                f"{what}, but isolated networks run on the processor; use device 'cpu' and engine {usable}"
            )
        if gpu is not None:
            gpu.describe()  # before an engine is started for nothing
        opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        encoder = (isolated_encoder if isolated else create_encoder_engine)(
            opened.encoders,
            opened.manifest.encoder,
            engine=engine,
            precision=precision,
            threads=threads,
        )
        model = cls(
            opened.manifest,
            {"encoder": encoder, **mask_engines(opened, encoder.info, threads=threads, isolated=isolated)},
            precision=match_precision(precision),
            threads=threads,
            source=str(opened.path),
            device=device,
            segmenter=_open_segmenter(segmenter, threads) if segmenter else None,
        )
        model._no_gpu = why
        return model

    @property
    def takes_frames_on_gpu(self) -> bool:
        """Whether frames may be on the model's GPU already, because its engine runs there."""
        return self._encoder.takes_frames_on_gpu

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._manifest

    def working_size(self, height: int, width: int, size: WorkingSize = None) -> tuple[int, int]:
        """Rows and columns at which the network sees frames of a size, in pixels.

        Args:
            height: rows of the frames.
            size: as for `encode`.

        Raises:
            OptionError: the size is neither a number of pixels nor ``"native"``.
            InputError: the network does not take such frames.
        """
        return self._encoder.working_size(height, width, size)

    def encode(self, frame: FrameArray, size: WorkingSize = None) -> Embedding:
        """Embed one frame; may be called from several threads, ahead of the streams that use the result.

        Args:
            frame: u8 [H, W, 3], BGR.
            size: short side of the working frame in pixels, to which smaller frames are enlarged. None is the bundle's
                own size or, if it has none, 480, to which frames are only ever shrunk. ``"native"`` keeps the frame's
                own size.

        Raises:
            OptionError: the size is neither a number of pixels nor ``"native"``.
            InputError: the frame is no such array, or its working size is out of the encoder's range.
            EngineError: the engine failed.
        """
        return self._encoder.encode(frame, size)

    def encode_batch(self, frames: Sequence[FrameArray], size: WorkingSize = None) -> list[Embedding]:
        """Embed frames of several videos; those of the same working size go through the engine together.

        `vosrt.step_all` does this for streams. A batch's embeddings differ from those of `encode` by what the
        engine rounds differently: below 1e-5 in fp32.

        Args:
            frames: u8 [H, W, 3] BGR each.
            size: as for `encode`.

        Raises:
            OptionError: likewise.
            InputError: one of them is no such array, or its working size is out of the encoder's range.
            EngineError: the engine failed.
        """
        if not isinstance(frames, Iterable):
            raise InputError(f"frames is {type(frames).__name__}; expected a sequence of frames")
        given, embeddings = list(frames), []
        for position, encoded in enumerate(self._encoder.encode_each(given, [size] * len(given))):
            if isinstance(encoded, InputError):
                raise InputError(f"frame {position} of {len(given)}: {encoded}") from encoded
            if isinstance(encoded, VosrtError):
                raise encoded
            embeddings.append(encoded)
        return embeddings

    def segment(
        self,
        frame: U8Array,
        points: Sequence[Sequence[float]] = (),
        box: Box | None = None,
        mask: BoolArray | None = None,
        *,
        size: WorkingSize = None,
    ) -> BoolArray:
        """Return the object that is clicked in one frame: marks for `Stream.start`, without labels.

        The frame that came last stays encoded, and what its clicks gave is kept: one more click takes tens of
        milliseconds.

        Args:
            frame: u8 [H, W, 3], BGR.
            points: (x, y) or (x, y, positive) in pixels, in the order in which they were clicked; each corrects what
                those before it gave. A point that is not positive says that the object is not there.
            box: x, y, width, height in pixels around the object.
            mask: bool [H, W], what the clicks correct; None begins with nothing.
            size: as for `encode`.

        Returns:
            bool [H, W].

        Raises:
            OptionError: there is neither a positive point nor a box nor a mask.
            MaskError: a point or the box lies outside the frame, or the mask has another size.
            InputError: the frame is no such array.
            EngineError: the engine failed.
        """
        key = (hashlib.blake2b(np.ascontiguousarray(check_frame(frame)).data).digest(), frame.shape, size)
        with self._clicking:
            if self._clicked is None or self._clicked[0] != key:
                self._clicked = key, self.clickable(frame, size)
            return self._clicked[1].segment(points, box, mask)

    def clickable(self, frame: U8Array, size: WorkingSize = None) -> Segmenter:
        """Encode a frame for clicks; `segment` does this for the frame that came last.

        Args:
            frame: u8 [H, W, 3], BGR.
            size: as for `encode`.

        Raises:
            VosrtError: as for `encode`.
        """
        if self._segmenter is not None:
            return self._segmenter.frame(check_frame(frame))
        from vosrt.prompt.clicked import click_on

        return click_on(self.encode(frame, size), self._manifest.encoder.stride)

    def stream(
        self,
        *,
        size: WorkingSize = None,
        options: PropagationOptions | None = None,
        threads: int | None = None,
        refine: int | str = "default",
        labels_on: LabelsOn = "host",
    ) -> Stream:
        """Open a stream for one video.

        Args:
            size: short side of the working frame in pixels, as for `encode`.
            options: how labels are propagated; None is what the bundle recommends.
            threads: of the native core; None is as many as the model was loaded with, 0 one per processor.
            refine: rounds of refinement, 0 to 4; ``"default"`` is what the bundle recommends, ``"off"`` decodes none.
            labels_on: ``"gpu"`` leaves labels and confidence on the GPU of a model that was loaded for one, as
                ``labels_tensor`` and ``confidence_tensor`` of the results, and does not wait for them.

        Raises:
            OptionError: the size is neither a number of pixels nor ``"native"``, labels are to stay on a GPU that is
                missing, the rounds are out of range, or the bundle has no mask embedding that fits its encoder.
        """
        graph = self._manifest.graphs.get("encoder")  # a network that is being trained has none
        chosen = options or self._manifest.inference
        return Stream(
            self._encoder,
            chosen,
            size=size,
            precision=self._precision,
            threads=self._threads if threads is None else threads,
            refiner=self._refinement(refine),
            model_sha256=graph.sha256 if graph else "",
            device=self._device,
            labels_on=labels_on,
        )

    def stream_within(
        self,
        budget_ms: float,
        height: int,
        width: int,
        *,
        size: WorkingSize = None,
        options: PropagationOptions | None = None,
        threads: int | None = None,
        refine: int | str = "default",
    ) -> BudgetedStream:
        """Open a stream that gives up working size and context while frames take longer than a budget.

        Args:
            budget_ms: milliseconds that `Stream.step` may take.
            height: of the frames, in pixels, like ``width``.
            size: largest short side of the working frame, as for `stream`.
            options: how labels are propagated; its context is the longest.
            threads: as for `stream`.
            refine: as for `stream`; streams that refine have no budget.

        Raises:
            OptionError: the budget is not above 0, the memory is on a GPU, or masks are refined.
        """
        from vosrt.budget import Budget, BudgetedStream, Setting, ladder

        chosen, spec = options or self._manifest.inference, self._manifest.encoder
        if self._device != "cpu":
            raise OptionError("a budget works with the memory on the processor; leave out the device or the budget")
        if self._refinement(refine) is not None:
            raise OptionError("a budget cannot resize streams that refine masks; set refine to off or drop the budget")
        best = Setting(min(self.working_size(height, width, size)), chosen.context)

        def open_stream(setting: Setting) -> Stream:
            # The best one is as asked for: its sides need not be multiples of anything.
            asked = size if setting.size == best.size else setting.size
            return self.stream(
                size=asked, options=replace(chosen, context=setting.context), threads=threads, refine=refine
            )

        return BudgetedStream(open_stream, Budget(budget_ms, ladder(best, smallest=spec.min_side, stride=spec.stride)))

    def propagate(
        self,
        source: str | Path,
        marks: Mapping[int, MaskArray],
        *,
        direction: Direction = "both",
        start: int = 0,
        end: int | None = None,
        size: WorkingSize = None,
        options: PropagationOptions | None = None,
        refine: int | str = "default",
    ) -> Iterator[SegmentedFrame]:
        """Follow marked objects forward and backward through a file, and yield every frame in the order of time.

        Between marks, each pixel takes the label of the way that is more confident, weighted by 1 / frames to its mark.
        The way back is done before the first frame is yielded; it waits in a temporary file, and memory does not grow
        with the file. Ending the iteration ends the work.

        Args:
            source: video file, folder of frames or TIFF stack; with ``"forward"`` also what is live.
            marks: by frame number, integers [H, W], 0 where nothing is marked and an object id elsewhere.
            direction: ``"forward"``: from the first mark on; ``"backward"``: from the last one back; or ``"both"``.
            start: first frame that is read, from 0.
            end: first frame that is not read; None reads to the end.
            size: as for `stream`, like the two that follow.

        Yields:
            Per frame, ``frame`` (``image``, ``index``, ``time_s``, ``name``), ``labels`` u8 [H, W], ``object_ids`` and
            ``object_confidence``; frames that no way reached are background.

        Raises:
            OptionError: a direction needs a file, or a mark is on a frame that is not read.
            SourceError: the source cannot be opened.
            MaskError: a mask does not fit, or an object is too small to represent.
            BrokenVideoError: the source breaks half-way; every frame before was yielded, unless the way back met that.
        """
        from vosrt.directions import propagate

        def open_stream() -> Stream:
            return self.stream(size=size, options=options, refine=refine)

        return propagate(open_stream, source, marks, direction=direction, start=start, end=end)

    def _refinement(self, refine: int | str) -> Refinement[Any] | None:
        masks = self._manifest.masks
        if masks is None:
            if refine not in ("default", "off"):
                raise OptionError(f"refine is {refine!r}, but this bundle has no mask embedding; leave it out")
            return None
        if refine == "off":
            return None
        if self._manifest.encoder.align_corners:
            raise OptionError(
                f"refine is {refine!r}, but this encoder aligns corners; refined masks do not fit; use 'off'"
            )
        rounds = masks.rounds if refine == "default" else refine
        if type(rounds) is not int or not 0 <= rounds <= MAX_ROUNDS:
            raise OptionError(f"refine is {refine!r}; expected 0 to {MAX_ROUNDS} rounds, 'default' or 'off'")
        if self._gpu is not None and self._mask_networks is not None:
            return self._gpu.refinement(masks, self._mask_networks, rounds)
        return Refinement(masks, self._engines["mask_encoder"], self._engines["decoder"], rounds)

    def describe(self) -> dict[str, Any]:
        """What runs and why, as plain values that print and serialise."""
        core = self._core
        if core is None:
            channels, options = self._manifest.encoder.channels, PropagationOptions()
            _, core = create_memory(1, 1, channels, options, precision=self._precision, threads=self._threads)
        return {
            "bundle": self._manifest.name,
            "source": self._source,
            "weights": "trained" if self._manifest.trained else "untrained",
            "feature": f"{self._manifest.encoder.feature}, {self._manifest.encoder.channels} channels",
            "size": _say_size(self._manifest),
            "engines": {name: vars(engine.info) for name, engine in self._engines.items()},
            "core": f"{core}; on no GPU: {self._no_gpu}" if self._no_gpu else core,
            "versions": {"vosrt": _version(), "python": platform.python_version(), "numpy": np.__version__},
        }


def _say_size(manifest: Manifest) -> str:
    words = f"frames above {manifest.size or DEFAULT_SIZE} pixels of short side are shrunk to that"
    if manifest.enlarge_percent > 100:
        words += f", smaller ones enlarged to it, at most to {manifest.enlarge_percent} %"
    return words


def choose_device(device: str, *, engine: str, precision: str, isolated: bool) -> tuple[str, str]:
    """Return the device that ``"auto"`` stands for, and why it is none of a GPU's; any other as it is.

    Args:
        device: as for `Model.load`, like the others.
        engine: likewise.
        precision: likewise.
        isolated: likewise.
    """
    if device != "auto":
        return device, ""
    if isolated:
        return "cpu", "isolated networks run on the processor"
    if engine != "auto" and on_processor(plain_name(engine)):
        return "cpu", f"the engine {engine} runs on the processor"
    if precision == "fp32":
        return "cpu", "a GPU matches in bf16, and fp32 was asked for"
    chosen, what = usable_device()
    if chosen == "cpu" and has_gpu():
        _log.warning("the NVIDIA GPU is not used: %s; vos-run doctor says what to install", what)
    return chosen, "" if chosen != "cpu" else what


def match_precision(network: ModelPrecision) -> Precision:
    """Precision of matching beside a network that was asked for in a precision."""
    return "fp32" if network == "fp32" else "bf16" if network == "bf16" else "auto"


def _open_segmenter(text: str, threads: int) -> OnnxSegmenter:
    from vosrt.prompt.onnx import OnnxSegmenter

    return OnnxSegmenter.parse(text, threads=threads)


def mask_engines(bundle: Bundle, encoder: EngineInfo, *, threads: int = 0, isolated: bool = False) -> dict[str, Engine]:
    """The engines of a bundle's mask networks by role; none for a bundle of the family correspondence.

    Args:
        encoder: the engine that runs the encoder, whose kind they follow.
        threads: 0 is one per processor.
        isolated: as of `Model.load`.

    Raises:
        EngineError: a graph cannot be loaded.
    """
    roles = [role for role in bundle.manifest.graphs if role in MASK_AXES]
    create = isolated_mask_engine if isolated else create_mask_engine
    return {role: create(bundle.graph(role), role, encoder, threads=threads) for role in roles}


def _mask_networks(engines: Mapping[str, Engine], gpu: Gpu) -> tuple[NetworkOnGpu, NetworkOnGpu] | None:
    """Mask encoder and decoder on a GPU; None where an engine is missing or does not run there."""
    mask_encoder, decoder = engines.get("mask_encoder"), engines.get("decoder")
    if mask_encoder is None or decoder is None or not (stays_on_gpu(mask_encoder) and stays_on_gpu(decoder)):
        return None
    return gpu.network(mask_encoder, "values"), gpu.network(decoder, "logits")


def _version() -> str:
    try:
        return importlib.metadata.version("vosrt")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
