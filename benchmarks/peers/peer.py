"""The measured process of ``benchmarks/peers``: one method on one clip.

    python -m benchmarks.peers.peer '{"method": "dense", "objects": 1, "size": 480, "threads": 2, "bundle": …}'

Every method gets frames u8 [H, W, 3] BGR and gives labels u8 [H, W]; what lies between is timed, colour conversion and
upsampling included. Weights are random where none are at hand: speed does not depend on them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vosrt.bench.clip import PERIOD, mark_objects, render, size_of
from vosrt.bench.worker import serve
from vosrt.types import U8Array

Segment = Callable[[U8Array], U8Array]


class Method:
    """One method following the objects of the clip's first frame."""

    def __init__(self, given: dict[str, Any]) -> None:
        height, width = size_of(given["size"])
        frames = [render(height, width, t) for t in range(PERIOD)]
        mask = mark_objects(height, width, given["objects"])
        self._video: Iterator[U8Array] = itertools.cycle([*frames[1:], frames[0]])
        self._segment, self._what = METHODS[given["method"]](frames, mask, given)
        self._shape = mask.shape

    def describe(self) -> dict[str, Any]:
        """What runs."""
        return self._what

    def step(self) -> dict[str, float]:
        """Segment the next frame."""
        frame = next(self._video)
        began = time.perf_counter()
        labels = self._segment(frame)
        took = time.perf_counter() - began
        if labels.shape != self._shape or labels.dtype != np.uint8:
            raise RuntimeError(f"the method gave {labels.dtype} {labels.shape}; expected uint8 {self._shape}")
        return {"frame": 1e3 * took}


def open_vosrt(frames: list[U8Array], mask: U8Array, given: dict[str, Any]) -> tuple[Segment, dict[str, Any]]:
    """The runtime with the bundle, engine and precision that were asked for."""
    from vosrt import Model

    model = Model.load(given["bundle"], engine=given["engine"], precision=given["precision"], threads=given["threads"])
    stream = model.stream(size=given["size"])
    stream.start(frames[0], mask)
    description = model.describe()
    engine = description["engines"]["encoder"]
    what = {"engine": f"{engine['name']} {engine['precision']}", "core": description["core"]}
    return lambda frame: stream.step(frame).labels, what


def open_dense(
    frames: list[U8Array], mask: U8Array, given: dict[str, Any], *, compiled: bool = False
) -> tuple[Segment, dict[str, Any]]:
    """Label propagation in PyTorch as its formulas read, with the full network (res4, 512 channels)."""
    import torch

    from benchmarks.kernels.dense import DenseTracker, propagate
    from vosrt.types import PropagationOptions
    from vosrt_export.graphs import EncoderGraph
    from vosrt_train.config import EncoderConfig
    from vosrt_train.model import build_encoder

    torch.set_num_threads(given["threads"])
    encode: Any = EncoderGraph(build_encoder(EncoderConfig(), seed=0), "res4").eval()
    step: Any = propagate
    if compiled:
        encode, step = torch.compile(encode, dynamic=False), torch.compile(propagate, dynamic=False)
    tracker = DenseTracker(encode, PropagationOptions(), step)
    tracker.start(torch.from_numpy(frames[0]), torch.from_numpy(mask), given["objects"])

    def segment(frame: U8Array) -> U8Array:
        labels, _ = tracker.step(torch.from_numpy(frame))
        return np.asarray(labels.numpy(), np.uint8)

    return segment, {"engine": f"torch {torch.__version__} fp32{', torch.compile' if compiled else ''}"}


def open_cutie(
    frames: list[U8Array], mask: U8Array, given: dict[str, Any], *, model: str, bf16: bool = False, device: str = "cpu"
) -> tuple[Segment, dict[str, Any]]:
    """Cutie (rf-cutie) with its settings for DAVIS-2017: memory every 5th frame, 5 memory frames, no resizing."""
    import torch

    stub_torchvision()
    cutie_package = importlib.import_module("cutie")
    omegaconf = importlib.import_module("omegaconf").OmegaConf
    resnet = importlib.import_module("cutie.model.utils.resnet")
    for name in ("resnet18", "resnet50"):  # they would download ImageNet weights
        setattr(resnet, name, functools.partial(_without_weights, getattr(resnet, name)))
    network_class = importlib.import_module("cutie.model.cutie").CUTIE
    core_class = importlib.import_module("cutie.inference.inference_core").InferenceCore

    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    folder = Path(next(iter(cutie_package.__path__))) / "config"
    config = omegaconf.load(folder / "eval_config.yaml")
    del config["defaults"]
    network_config = omegaconf.load(folder / "model" / "base.yaml")
    if model == "small":
        network_config = omegaconf.merge(network_config, omegaconf.load(folder / "model" / "small.yaml"))
        del network_config["defaults"]
    config = omegaconf.merge(config, {"model": network_config, "mem_every": 5, "use_long_term": False})
    core = core_class(network_class(config).eval().to(device), cfg=config)

    @torch.inference_mode()
    def segment(frame: U8Array, mask: U8Array | None = None) -> U8Array:
        half = torch.float16 if device == "cuda" else torch.bfloat16
        with torch.autocast(device, half, enabled=bf16):
            pixels = torch.from_numpy(np.ascontiguousarray(frame[:, :, ::-1])).to(device)
            rgb = pixels.permute(2, 0, 1).float() / 255
            if mask is None:
                probability = core.step(rgb)
            else:
                probability = core.step(
                    rgb, torch.from_numpy(mask).long().to(device), list(range(1, given["objects"] + 1))
                )
            return np.asarray(core.output_prob_to_mask(probability).cpu().numpy(), np.uint8)

    segment(frames[0], mask)
    return segment, {"engine": f"torch {torch.__version__} {'bf16 autocast' if bf16 else 'fp32'}"}


def open_sam(
    frames: list[U8Array], mask: U8Array, given: dict[str, Any], *, device: str = "cpu"
) -> tuple[Segment, dict[str, Any]]:
    """SAM 2.1-tiny. Its frames are loaded and resized beforehand, as its interface has it; that is not timed."""
    import cv2
    import torch

    stub_torchvision()
    build = importlib.import_module("sam2.build_sam").build_sam2_video_predictor
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    predictor = build("configs/sam2.1/sam2.1_hiera_t.yaml", None, device=device, apply_postprocessing=False)
    with tempfile.TemporaryDirectory() as folder:
        for t, frame in enumerate(frames[:SAM_FRAMES]):
            cv2.imwrite(f"{folder}/{t:05d}.jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
        state = predictor.init_state(video_path=folder)
    for number in range(1, given["objects"] + 1):
        predictor.add_new_mask(state, frame_idx=0, obj_id=number, mask=mask == number)
    results = predictor.propagate_in_video(state)
    next(results)  # the first frame, whose masks are marks

    def segment(_: U8Array) -> U8Array:
        _, ids, logits = next(results)
        best, index = (each.cpu() for each in logits[:, 0].max(dim=0))
        return np.asarray(np.where(best > 0, np.array(ids, np.uint8)[index], 0), np.uint8)

    return segment, {"engine": f"torch {torch.__version__} fp32"}


SAM_FRAMES = 24  # 13 MB each at its size of 1024 x 1024
METHODS: dict[str, Callable[[list[U8Array], U8Array, dict[str, Any]], tuple[Segment, dict[str, Any]]]] = {
    "vosrt": open_vosrt,
    "dense": open_dense,
    "dense-compiled": functools.partial(open_dense, compiled=True),
    "cutie-small": functools.partial(open_cutie, model="small"),
    "cutie-small-bf16": functools.partial(open_cutie, model="small", bf16=True),
    "cutie-base": functools.partial(open_cutie, model="base"),
    "sam2.1-tiny": open_sam,
}


def stub_torchvision() -> None:
    """Let packages import torchvision where it is missing; the measured code calls none of it."""
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.ops", "torchvision.ops.boxes"):
            sys.modules[name] = _Stub(name)


class _Stub(types.ModuleType):
    """A module of which everything can be imported and nothing be called."""

    __path__: ClassVar[list[str]] = []  # a package, for the import system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> None:
            raise RuntimeError(f"{self.__name__}.{name} was called, but torchvision is not installed")

        return missing


def _without_weights(build: Callable[..., Any], pretrained: bool = True, **options: Any) -> Any:
    return build(pretrained=False, **options)


def main() -> None:
    """Serve the method that the command line names."""
    given = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    serve(lambda: Method(given))


if __name__ == "__main__":
    main()
