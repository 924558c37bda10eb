"""A bundle ready to run: engines loaded, nothing of any video held."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vosrt.bundle import MAX_ROUNDS, Bundle, Manifest, load_bundle
from vosrt.cuda_library import parse_device
from vosrt.cuda_memory import describe_core
from vosrt.encoder import Embedding, FrameArray, FrameEncoder, stays_on_gpu
from vosrt.engines.base import Engine
from vosrt.engines.select import MASK_AXES, create_encoder_engine, create_mask_engine
from vosrt.errors import InputError, OptionError, VosrtError
from vosrt.graph_on_gpu import GraphOnGpu
from vosrt.memory import create_memory
from vosrt.refinement import Refiner
from vosrt.refinement_on_gpu import RefinerOnGpu
from vosrt.stream import LabelsOn, Stream
from vosrt.types import Precision, PropagationOptions


class Model:
    """A network and its settings. Immutable; shared by streams and threads.

    Args:
        manifest: what the bundle says.
        engines: per graph of the bundle, what runs it; ``"encoder"`` is needed.
        precision: of the products in matching, see :meth:`load`.
        threads: of the native core, see :meth:`load`.
        source: where the bundle came from, for :meth:`describe`.
        device: of the streams' memories, see :meth:`load`.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        *,
        precision: Precision = "auto",
        threads: int = 0,
        source: str = "",
        device: str = "cpu",
    ) -> None:
        self._device = device
        gpu = parse_device(device)
        self._core = None if gpu is None else describe_core(gpu)  # told even if the GPU is lost or full later
        self._manifest = manifest
        self._engines = dict(engines)
        self._precision: Precision = precision
        self._threads = threads
        self._source = source
        self._encoder = FrameEncoder(manifest.encoder, self._engines["encoder"], manifest.size, gpu)
        self._mask_graphs = None if gpu is None else _mask_graphs(self._engines, gpu)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle = "default",
        *,
        engine: str = "auto",
        precision: Precision = "auto",
        threads: int = 0,
        device: str = "cpu",
    ) -> Model:
        """Load a bundle and start an engine for it.

        Args:
            bundle: a bundle's directory; ``"default"`` is the one that comes with the package.
            engine: ``"auto"`` (the fastest that runs here), ``"tensorrt-direct"``, ``"tensorrt-rtx-direct"``,
                ``"tensorrt"``, ``"tensorrt-rtx"``, ``"cuda"``, ``"openvino"``, ``"openvino-direct"``, ``"cpu"``, or
                ``"fake"`` for tests.
            precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16 where the processor has it natively, on a GPU the
                narrowest that the engine has.
            threads: of the engine and of each stream's core; 0 is one per processor.
            device: where streams remember and match: ``"cpu"``, or ``"cuda"`` or ``"cuda:N"`` for an NVIDIA GPU, on
                which the embeddings of engines that run there stay.

        Raises:
            BundleError: the bundle is missing, altered or made by a newer vosrt.
            OptionError: an unknown engine, precision or device, one without the other, or a GPU that cannot be used.
            MissingExtraError: the engine is not installed; the message has the pip command.
            EngineError: the engine cannot run the bundle.
        """
        if precision not in ("auto", "fp32", "bf16"):
            raise OptionError(f"precision is {precision!r}; expected 'auto', 'fp32' or 'bf16'")
        if threads < 0:
            raise OptionError(f"threads is {threads}; expected 0 (one per processor) or more")
        if (gpu := parse_device(device)) is not None:
            describe_core(gpu)  # before an engine is started for nothing
        opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        encoder = create_encoder_engine(
            opened.graph_path("encoder"), opened.manifest.encoder, engine=engine, precision=precision, threads=threads
        )
        further = {
            role: create_mask_engine(opened.graph_path(role), role, encoder.info, threads=threads)
            for role in opened.manifest.graphs
            if role in MASK_AXES
        }
        return cls(
            opened.manifest,
            {"encoder": encoder, **further},
            precision=precision,
            threads=threads,
            source=str(opened.path),
            device=device,
        )

    @property
    def takes_frames_on_gpu(self) -> bool:
        """Whether frames may be on the model's GPU already, because its engine runs there."""
        return self._encoder.takes_frames_on_gpu

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._manifest

    def encode(self, frame: FrameArray, size: int | None = None) -> Embedding:
        """Embed one frame; may be called from several threads, ahead of the streams that use the result.

        Args:
            frame: u8 [H, W, 3], BGR.
            size: short side of the working frame in pixels; None is the bundle's default (which never enlarges), or
                the frame's own size.

        Raises:
            InputError: the frame is no such array, or its working size is out of the encoder's range.
            EngineError: the engine failed.
        """
        return self._encoder.encode(frame, size)

    def encode_batch(self, frames: Sequence[FrameArray], size: int | None = None) -> list[Embedding]:
        """Embed frames of several videos; those of the same working size go through the engine together.

        `vosrt.step_all` does this for streams. A batch's embeddings differ from those of :meth:`encode` by what the
        engine rounds differently: below 1e-5 in fp32.

        Args:
            frames: u8 [H, W, 3] BGR each.
            size: as for :meth:`encode`.

        Raises:
            InputError: one of them is no such array, or its working size is out of the encoder's range.
            EngineError: the engine failed.
        """
        embeddings = []
        for position, encoded in enumerate(self._encoder.encode_each(frames, [size] * len(frames))):
            if isinstance(encoded, InputError):
                raise InputError(f"frame {position} of {len(frames)}: {encoded}") from encoded
            if isinstance(encoded, VosrtError):
                raise encoded
            embeddings.append(encoded)
        return embeddings

    def stream(
        self,
        *,
        size: int | None = None,
        options: PropagationOptions | None = None,
        threads: int | None = None,
        refine: int | str = "default",
        labels_on: LabelsOn = "host",
    ) -> Stream:
        """Open a stream for one video.

        Args:
            size: short side of the working frame in pixels, as for :meth:`encode`.
            options: how labels are propagated; None is what the bundle recommends.
            threads: of the native core; None is as many as the model was loaded with, 0 one per processor.
            refine: rounds of refinement, 0 to 4; ``"default"`` is what the bundle recommends, ``"off"`` decodes none.
            labels_on: ``"gpu"`` leaves labels and confidence on the GPU of a model that was loaded for one, as
                ``labels_tensor`` and ``confidence_tensor`` of the results, and does not wait for them.

        Raises:
            OptionError: labels are wanted on a GPU where there is none, the rounds are out of range, or the bundle has
                no mask embedding that fits its encoder.
        """
        graph = self._manifest.graphs.get("encoder")  # a network that is being trained has none
        chosen = options or self._manifest.inference
        return Stream(
            self._encoder,
            chosen,
            size=size,
            precision=self._precision,
            threads=self._threads if threads is None else threads,
            refiner=self._refiner(refine, chosen, self._threads if threads is None else threads),
            model_sha256=graph.sha256 if graph else "",
            device=self._device,
            labels_on=labels_on,
        )

    def _refiner(self, refine: int | str, options: PropagationOptions, threads: int) -> Refiner | RefinerOnGpu | None:
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
        if self._mask_graphs is not None:
            return RefinerOnGpu(masks, *self._mask_graphs, options, rounds)
        return Refiner(masks, self._engines["mask_encoder"], self._engines["decoder"], options, rounds, threads)

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
            "engines": {name: vars(engine.info) for name, engine in self._engines.items()},
            "core": core,
            "versions": {"vosrt": _version(), "python": platform.python_version(), "numpy": np.__version__},
        }


def _mask_graphs(engines: Mapping[str, Engine], device: int) -> tuple[GraphOnGpu, GraphOnGpu] | None:
    """Mask encoder and decoder on a GPU; None where an engine is missing or does not run there."""
    mask_encoder, decoder = engines.get("mask_encoder"), engines.get("decoder")
    if mask_encoder is None or decoder is None or not (stays_on_gpu(mask_encoder) and stays_on_gpu(decoder)):
        return None
    return GraphOnGpu(mask_encoder, "values", device), GraphOnGpu(decoder, "logits", device)


def _version() -> str:
    try:
        return importlib.metadata.version("vosrt")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
