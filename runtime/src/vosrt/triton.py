"""A model for Triton Inference Server's Python backend: a sequence is a stream.

``vos-export triton`` writes the folder that the server reads. A request of a sequence has the next frame (``FRAME``, u8
[1, H, W, 3], BGR) and, where objects are marked, ids per pixel (``MASK``, u8 [1, H, W]). Its answer is the ids of the
frame (``LABELS``, u8 [1, H, W]) and a line of JSON (``RESULT``), as `vosrt.served.answer_of` says. Triton says which
request begins a sequence and which one ends it; the end has a frame, too.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from vosrt.errors import OptionError, VosrtError
from vosrt.model import Model
from vosrt.served import ServedStream, answer_of
from vosrt.types import U8Array, WorkingSize

BUNDLE = "bundle"  # folder beside model.py


class TritonPythonModel:
    """What Triton's Python backend calls; one for each instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle.

        Args:
            args: of the backend: ``model_config`` (JSON), ``model_repository`` and ``model_version``.
        """
        config = json.loads(args["model_config"])
        options = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        bundle = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self._model = Model.load(
            str(bundle), engine=options["engine"], precision=options["precision"], threads=int(options["threads"])
        )
        size = options["size"]
        self._size: WorkingSize = int(size) if size.isdecimal() else "native" if size == "native" else None
        self._most = int(config["sequence_batching"]["oldest"]["max_candidate_sequences"])
        self._streams: OrderedDict[int, ServedStream] = OrderedDict()  # the one used last is last

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each of one sequence, in order; one that cannot be used is answered with its error."""
        import triton_python_backend_utils as pb_utils

        answers = []
        for request in requests:
            try:
                labels, text = self._answer({name: _input(pb_utils, request, name) for name in _INPUTS})
            except VosrtError as error:
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
                continue
            tensors = [
                pb_utils.Tensor("LABELS", labels[None]),
                pb_utils.Tensor("RESULT", np.array([[text]], np.object_)),
            ]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return answers

    def finalize(self) -> None:
        """Close all streams."""
        while self._streams:
            self._streams.popitem()[1].close()

    def _answer(self, given: dict[str, Any]) -> tuple[U8Array, str]:
        came = time.perf_counter()
        sequence = int(given["CORRID"].flat[0])
        if given["START"].flat[0]:
            self._begin(sequence)
        if sequence not in self._streams:
            raise OptionError(
                f"sequence {sequence} is not open; it ended, or was idle too long: begin with sequence_start and a mask"
            )
        self._streams.move_to_end(sequence)
        try:
            mask = None if given["MASK"] is None else given["MASK"][0]
            result = self._streams[sequence].take(given["FRAME"][0], mask)
            return result.labels, json.dumps(answer_of(result, 1e3 * (time.perf_counter() - came)))
        finally:
            if given["END"].flat[0]:
                self._streams.pop(sequence).close()

    def _begin(self, sequence: int) -> None:
        """Open a stream. Triton forgets idle sequences without a word: those used longest ago make room."""
        if sequence in self._streams:
            self._streams.pop(sequence).close()
        while len(self._streams) >= self._most:
            self._streams.popitem(last=False)[1].close()
        self._streams[sequence] = ServedStream(self._model.stream(size=self._size))


_INPUTS = ("FRAME", "MASK", "START", "END", "CORRID")


def _input(pb_utils: Any, request: Any, name: str) -> Any:
    """The array of an input, None where the request has none."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
