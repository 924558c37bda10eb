"""A tiny encoder; and machines with NVIDIA's GPUs, as far as vosrt uses them, in host memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.fakes.cuda import FakeCuda
from tests.fakes.emulated import EmulatedGpu
from tests.fakes.tensorrt import FakeDriver, FakeNvidia, FakeTensorRt, mean_colours
from vosrt.engines import nvidia
from vosrt.types import F32Array, U8Array


@pytest.fixture(scope="session")
def encoder_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without weights: the mean colour of every 8 x 8 cell, normalised."""
    onnx = pytest.importorskip("onnx")
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Cast", ["frames"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["planes"], ["cells"], kernel_shape=[8, 8], strides=[8, 8], ceil_mode=1),
        node("LpNormalization", ["cells"], ["unit"], axis=1),
        node("Transpose", ["unit"], ["embedding"], perm=[0, 2, 3, 1]),
    ]
    frames = value("frames", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    embedding = value("embedding", onnx.TensorProto.FLOAT, ["n", "h", "w", 3])
    built = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "encoder", [frames], [embedding]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path_factory.mktemp("bundle") / "encoder.onnx"
    onnx.save(built, path)
    return path


@pytest.fixture
def plug_in_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine with GPUs: ``plug_in_gpu(("RTX 3060", 8, 6))``; none: a driver without a GPU."""

    def plug_in(*gpus: tuple[str, int, int], init_status: int = 0, cuda: int = 13010) -> None:
        monkeypatch.setattr(nvidia, "_load_driver", lambda: FakeDriver(*gpus, init_status=init_status, cuda=cuda))

    return plug_in


@pytest.fixture(name="mean_colours")
def mean_colours_fixture() -> Callable[[U8Array], F32Array]:
    """What `encoder_graph` computes."""
    return mean_colours


@pytest.fixture
def fake_nvidia(monkeypatch: pytest.MonkeyPatch, plug_in_gpu: Callable[..., None]) -> FakeNvidia:
    cuda = FakeCuda()
    machine = FakeNvidia(
        cuda, FakeTensorRt("tensorrt", "10.9.0.34", cuda), FakeTensorRt("tensorrt_rtx", "1.7.1.116", cuda)
    )
    plug_in_gpu(("NVIDIA GeForce RTX 3060", 8, 6))
    for name, module in (
        ("cuda", ModuleType("cuda")),
        ("cuda.bindings", ModuleType("cuda.bindings")),
        ("cuda.bindings.runtime", cuda),
        ("tensorrt", machine.tensorrt),
        ("tensorrt_rtx", machine.tensorrt_rtx),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return machine


@pytest.fixture
def whole_nvidia(fake_nvidia: FakeNvidia, cuda_emulated: Path) -> Iterator[FakeNvidia]:
    """A machine whose memories are on the GPU, too."""
    with EmulatedGpu(cuda_emulated, fake_nvidia.cuda):
        yield fake_nvidia
