"""``vos-export triton``: its configuration as Triton's protobuf reads it, and the model behind a stand-in backend."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vosrt import Model
from vosrt.types import U8Array
from vosrt_export.cli import main
from vosrt_export.triton import TritonOptions, config_of


@dataclass
class Tensor:
    """Stand-in for ``pb_utils.Tensor``."""

    name: str
    array: Any

    def as_numpy(self) -> Any:
        return self.array


@dataclass
class Response:
    """Stand-in for ``pb_utils.InferenceResponse``."""

    output_tensors: list[Tensor] = field(default_factory=list)
    error: str | None = None


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server gives the program: requests are dictionaries."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, str
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name]) if name in request else None
    monkeypatch.setitem(sys.modules, module.__name__, module)


def request(
    sequence: int, frame: U8Array, mask: U8Array | None = None, *, start: bool = False, end: bool = False
) -> Any:
    """A request as the sequence batcher hands it over: with a batch of one, and its controls."""
    given: dict[str, Any] = {"FRAME": frame[None], "CORRID": np.array([sequence], np.uint64)}
    given |= {name: np.array([value], np.int32) for name, value in (("START", start), ("END", end), ("READY", True))}
    return given if mask is None else given | {"MASK": mask[None]}


class Served:
    """The program of an exported model, begun as the server begins it."""

    def __init__(self, repository: Path) -> None:
        program: dict[str, Any] = {}
        exec((repository / "vosrt" / "1" / "model.py").read_text(), program)
        self.model = program["TritonPythonModel"]()
        strings = {"engine": "fake", "precision": "auto", "size": "64", "threads": "1"}
        config = {
            "parameters": {key: {"string_value": value} for key, value in strings.items()},
            "sequence_batching": {"oldest": {"max_candidate_sequences": 2}},
        }
        where = {"model_repository": str(repository / "vosrt"), "model_version": "1"}
        self.model.initialize({"model_config": json.dumps(config), **where})

    def labels(self, *given: Any) -> list[Any]:
        """Answers to requests: labels, or the error."""
        return [each.error or each.output_tensors[0].array[0] for each in self.model.execute(list(given))]


@pytest.fixture
def served(tmp_path: Path, fake_bundle: Path) -> Iterator[Served]:
    options = ["--engine", "fake", "--size", "64", "--threads", "1", "--sessions", "2"]
    assert main(["triton", str(fake_bundle), "-o", str(tmp_path / "models"), *options]) == 0
    served = Served(tmp_path / "models")
    yield served
    served.model.finalize()


@pytest.fixture
def clip() -> tuple[U8Array, U8Array]:
    """Four frames, and the mask of the first."""
    frames = np.random.default_rng(1).integers(0, 255, (4, 64, 96, 3), dtype=np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[8:40, 8:40] = 3
    return frames, mask


def test_triton_reads_the_configuration(tmp_path: Path, fake_bundle: Path) -> None:
    reason = "Triton's client is not installed: pip install 'tritonclient[grpc]'"
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format")
    assert main(["triton", str(fake_bundle), "-o", str(tmp_path), "--name", "clips", "--idle", "2.5"]) == 0
    config = text_format.Parse((tmp_path / "clips" / "config.pbtxt").read_text(), model_config.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("clips", "python", 1)
    assert [(each.name, list(each.dims), each.optional) for each in config.input] == [
        ("FRAME", [-1, -1, 3], False),
        ("MASK", [-1, -1], True),
    ]
    assert {each.data_type for each in (*config.input, config.output[0])} == {model_config.TYPE_UINT8}
    assert config.sequence_batching.max_sequence_idle_microseconds == 2_500_000
    assert config.sequence_batching.oldest.max_candidate_sequences == 16
    kinds = [
        model_config.ModelSequenceBatching.Control.Kind.Name(each.control[0].kind)
        for each in config.sequence_batching.control_input
    ]
    assert kinds == [f"CONTROL_SEQUENCE_{name}" for name in ("START", "END", "READY", "CORRID")]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "engine": "auto",
        "precision": "auto",
        "size": "",
        "threads": "0",
    }


def test_interleaved_sequences_have_the_labels_of_streams(
    served: Served, clip: tuple[U8Array, U8Array], fake_bundle: Path
) -> None:
    frames, mask = clip
    stream = Model.load(str(fake_bundle), engine="fake", threads=1).stream(size=64)
    expected = [stream.start(frames[0], mask).labels, *(stream.step(frame).labels for frame in frames[1:])]
    stream.close()
    last = len(frames) - 1
    for t, frame in enumerate(frames):
        marks = mask if t == 0 else None
        both = [request(sequence, frame, marks, start=t == 0, end=t == last) for sequence in (7, 8)]
        for labels in served.labels(*both):
            np.testing.assert_array_equal(labels, expected[t])
    assert "sequence 7 is not open" in served.labels(request(7, frames[0]))[0]


def test_the_answer_says_what_became_of_objects(served: Served, clip: tuple[U8Array, U8Array]) -> None:
    frames, mask = clip
    answer = served.model.execute([request(1, frames[0], mask, start=True)])[0]
    assert [tensor.name for tensor in answer.output_tensors] == ["LABELS", "RESULT"]
    said = json.loads(answer.output_tensors[1].array[0, 0])
    assert said["frame"] == 0
    assert said["objects"][0] | {"confidence": 0} == {
        "id": 3,
        "state": "present",
        "area_px": 1024,
        "box": [8, 8, 32, 32],
        "centroid": [23.5, 23.5],
        "confidence": 0,
    }


def test_what_cannot_be_used_is_an_error_and_the_sequence_goes_on(
    served: Served, clip: tuple[U8Array, U8Array]
) -> None:
    frames, mask = clip
    assert "the first frame needs a mask" in served.labels(request(1, frames[0], start=True))[0]
    assert "mask" in served.labels(request(1, frames[0], mask[:5]))[0]
    np.testing.assert_array_equal(served.labels(request(1, frames[0], mask))[0], mask)


def test_sequences_that_went_idle_make_room(served: Served, clip: tuple[U8Array, U8Array]) -> None:
    frames, mask = clip
    for sequence in (1, 2):
        served.labels(request(sequence, frames[0], mask, start=True))
    served.labels(request(1, frames[1]))  # 2 is idle for longer now
    served.labels(request(3, frames[0], mask, start=True))
    assert not isinstance(served.labels(request(1, frames[2]))[0], str)
    assert "sequence 2 is not open" in served.labels(request(2, frames[1]))[0]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--name", 'a"b'], "--name is 'a\"b'"),
        (["--sessions", "0"], "--sessions is 0; expected 1 or more"),
        (["--idle", "0"], "--idle is 0"),
        (["--engine", 'x" }'], "--engine is"),
        (["--size", "large"], "--size is 'large'"),
    ],
)
def test_wrong_options_write_nothing(
    tmp_path: Path, fake_bundle: Path, more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", str(fake_bundle), "-o", str(tmp_path / "models"), *more]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_model_is_not_replaced(served: Served, tmp_path: Path, fake_bundle: Path) -> None:
    before = (tmp_path / "models" / "vosrt" / "config.pbtxt").read_text()
    assert main(["triton", str(fake_bundle), "-o", str(tmp_path / "models")]) == 2
    assert (tmp_path / "models" / "vosrt" / "config.pbtxt").read_text() == before != config_of(TritonOptions())
