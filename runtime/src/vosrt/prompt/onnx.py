"""A promptable network of the user's, as two ONNX files: an encoder and a decoder as SAM and SAM 2 are exported.

The decoder is recognised by the names of its inputs: ``point_coords`` [1, N, 2] in pixels of the encoder's picture and
``point_labels`` [1, N] (1 on the object, 0 not, 2 and 3 corners of a box, -1 nothing), beside outputs of the encoder,
and where it has them ``mask_input``, ``has_mask_input`` and ``orig_im_size``. It gives ``masks`` as logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vosrt.engines.onnxruntime import load_onnxruntime
from vosrt.errors import EngineError, OptionError
from vosrt.prompt.points import BoolArray, Box, check_prompts
from vosrt.text import one_line
from vosrt.types import F32Array, U8Array

_SIDE = 1024  # of the encoder's picture, where its graph leaves it open
_LOW = 256  # side of a mask that the decoder takes
_SURE = 10.0  # logit of a mask that is given
_MEAN, _DEVIATION = (
    np.array((123.675, 116.28, 103.53), np.float32),
    np.array((58.395, 57.12, 57.375), np.float32),
)  # of ImageNet, RGB
_SAME = {"image_embeddings": "image_embed", "image_embed": "image_embeddings"}  # names that exports of the two have


class OnnxSegmenter:
    """The two networks.

    Args:
        encoder: path of an ONNX file whose one input is a picture: f32 [1, 3, H, W], normalised.
        decoder: path of an ONNX file, see above.
        threads: 0 is one per processor.

    Raises:
        OptionError: a file is missing, or its inputs are others.
        MissingExtraError: ONNX Runtime is not installed.
        EngineError: ONNX Runtime cannot load a file.
    """

    def __init__(self, encoder: Path, decoder: Path, *, threads: int = 0) -> None:
        self._encoder, self._decoder = _load(encoder, threads), _load(decoder, threads)
        inputs = self._encoder.get_inputs()
        shape = list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            given = ", ".join(f"{each.name} {each.shape}" for each in inputs)
            raise OptionError(f"{encoder}: takes {given}; expected one picture [1, 3, height, width]")
        self._input = inputs[0].name
        self._height, self._width = (each if isinstance(each, int) else _SIDE for each in shape[2:])
        self._takes = {each.name for each in self._decoder.get_inputs()}
        lacking = sorted({"point_coords", "point_labels"} - self._takes)
        if lacking:
            raise OptionError(f"{decoder}: has no input {lacking[0]}; expected the decoder of a network like SAM")
        # SAM keeps the shape of the picture and pads it; SAM 2, whose decoder takes finer features too, stretches it.
        self._stretches = any(name.startswith("high_res_feats") for name in self._takes)

    @classmethod
    def parse(cls, text: str, *, threads: int = 0) -> OnnxSegmenter:
        """Load what a user wrote as ``ENCODER.onnx,DECODER.onnx``.

        Raises:
            OptionError: these are not two files.
        """
        encoder, comma, decoder = text.partition(",")
        if not comma or not encoder or not decoder:
            raise OptionError(f"the segmenter is {text!r}; expected two files, ENCODER.onnx,DECODER.onnx")
        return cls(Path(encoder), Path(decoder), threads=threads)

    def frame(self, image: U8Array) -> OnnxClickedFrame:
        """Encode a frame, u8 [H, W, 3] BGR.

        Raises:
            EngineError: the network failed.
        """
        height, width = image.shape[:2]
        if self._stretches:
            scale = self._width / width, self._height / height
        else:
            scale = (min(self._width / width, self._height / height),) * 2
        size = max(1, round(width * scale[0])), max(1, round(height * scale[1]))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale[0] < 1 else cv2.INTER_LINEAR)
        picture = np.zeros((self._height, self._width, 3), np.float32)
        picture[: size[1], : size[0]] = (small[..., ::-1].astype(np.float32) - _MEAN) / _DEVIATION
        features = _run(self._encoder, {self._input: np.ascontiguousarray(picture.transpose(2, 0, 1))[None]})
        return OnnxClickedFrame(self, features, (height, width), scale)

    def decode(
        self,
        features: dict[str, Any],
        points: F32Array,
        labels: F32Array,
        mask: F32Array | None,
        size: tuple[int, int],
        scale: tuple[float, float],
    ) -> BoolArray:
        """Run the decoder.

        Args:
            features: outputs of the encoder by name.
            points: f32 [N, 2], in pixels of the encoder's picture.
            labels: f32 [N].
            mask: f32 [256, 256] logits; None for none.
            size: rows and columns of the frame.
            scale: pixels of the encoder's picture per pixel of the frame, along x and y.

        Returns:
            bool [H, W].

        Raises:
            EngineError: the network failed, lacks an input, or gives no masks.
        """
        given: dict[str, Any] = {
            **features,
            **{_SAME[name]: value for name, value in features.items() if name in _SAME},
            "point_coords": points[None],
            "point_labels": labels[None],
            "mask_input": (np.zeros((_LOW, _LOW), np.float32) if mask is None else mask)[None, None],
            "has_mask_input": np.array([mask is not None], np.float32),
            "orig_im_size": np.array(size, np.float32),
        }
        missing = sorted(self._takes - set(given))
        if missing:
            raise EngineError(f"the decoder wants {missing[0]}, which the encoder does not give; expected a pair")
        found = _run(self._decoder, {name: given[name] for name in self._takes})
        masks = found.get("masks", next(iter(found.values())))
        masks = masks.reshape(-1, *masks.shape[-2:])
        scores = found.get("iou_predictions")
        best = int(np.argmax(scores)) if scores is not None and scores.size == len(masks) else 0
        logits = masks[best].astype(np.float32)
        if logits.shape != size:  # of the encoder's picture, padding included
            full = cv2.resize(logits, (self._width, self._height), interpolation=cv2.INTER_LINEAR)
            inside = full[: max(1, round(size[0] * scale[1])), : max(1, round(size[1] * scale[0]))]
            logits = np.asarray(cv2.resize(inside, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.float32)
        return np.asarray(logits > 0)

    def low(self, mask: BoolArray, scale: tuple[float, float]) -> F32Array:
        """A mask bool [H, W] as the decoder takes it: logits f32 [256, 256] of the encoder's picture."""
        height, width = mask.shape
        size = max(1, round(width * scale[0])), max(1, round(height * scale[1]))
        picture = np.zeros((self._height, self._width), np.float32)
        picture[: size[1], : size[0]] = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        small = cv2.resize(picture, (_LOW, _LOW), interpolation=cv2.INTER_AREA)
        return np.asarray((2 * small - 1) * np.float32(_SURE), np.float32)


class OnnxClickedFrame:
    """An encoded frame; a `vosrt.prompt.points.Segmenter`. Made by `OnnxSegmenter.frame`."""

    def __init__(
        self, network: OnnxSegmenter, features: dict[str, Any], size: tuple[int, int], scale: tuple[float, float]
    ) -> None:
        self._network, self._features, self._size, self._scale = network, features, size, scale

    def segment(
        self, points: Sequence[Sequence[float]] = (), box: Box | None = None, mask: BoolArray | None = None
    ) -> BoolArray:
        """Return the object that is clicked; see `vosrt.prompt.clicked.ClickedFrame.segment`."""
        clicks = check_prompts(points, box, mask, *self._size)
        if not clicks and box is None and mask is not None:
            return mask
        places = [(each.x + 0.5, each.y + 0.5) for each in clicks]
        labels = [float(each.positive) for each in clicks]
        if box is None:
            places, labels = [*places, (0.0, 0.0)], [*labels, -1.0]
        else:
            places = [*places, (box[0], box[1]), (box[0] + box[2], box[1] + box[3])]
            labels = [*labels, 2.0, 3.0]
        low = None if mask is None else self._network.low(mask, self._scale)
        scaled = np.asarray(places, np.float32) * np.asarray(self._scale, np.float32)
        return self._network.decode(
            self._features, scaled, np.asarray(labels, np.float32), low, self._size, self._scale
        )


def _load(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise OptionError(f"{path}: is no file; expected an ONNX file of the segmenter")
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {one_line(str(error))}") from error


def _run(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    names = [each.name for each in session.get_outputs()]
    try:
        return dict(zip(names, session.run(None, inputs), strict=True))
    except Exception as error:
        raise EngineError(f"the segmenter failed: {one_line(str(error))}") from error
