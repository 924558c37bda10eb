"""Fixtures shared by all tests: data beside the checkout, tiny synthetic clips, memories on every core."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from vosrt.bundle import EncoderSpec, GraphFile, Manifest, write_manifest
from vosrt.cuda_library import load_cuda_library
from vosrt.errors import VosrtError
from vosrt.memory import Memory, NumpyMemory
from vosrt.stream import Stream
from vosrt.types import F32Array, PropagationOptions, U8Array

settings.register_profile("vosrt", deadline=None, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vosrt")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them the programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

MemoryFactory = Callable[..., Memory]
REPOSITORY = Path(__file__).resolve().parents[1]


def _skip_or_fail(reason: str, *, required: str) -> None:
    if required in os.environ.get("VOSRT_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (VOSRT_TEST_REQUIRE names {required!r})")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def skip_or_fail() -> Callable[..., None]:
    """Skips a test: ``skip_or_fail(reason, required="openvino")``.

    Fails it instead where the environment names the requirement: ``VOSRT_TEST_REQUIRE=native,openvino,shared``.
    """
    return _skip_or_fail


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory with the data that are not part of the repository: ``shared`` beside it, or ``VOSRT_SHARED``."""
    path = Path(os.environ.get("VOSRT_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        _skip_or_fail(f"no shared data at {path}; set VOSRT_SHARED to the directory that holds them", required="shared")
    return path


@pytest.fixture(scope="session")
def native() -> Any:
    """The native module; tests that need it are skipped where it is not built."""
    try:
        return importlib.import_module("vosrt._native")
    except ImportError as error:
        return _skip_or_fail(f"native core not built: {error}", required="native")


@pytest.fixture
def cuda_emulated(monkeypatch: pytest.MonkeyPatch) -> Path:
    """libvosrt_cuda with its kernels run on the processor, in place of the real one."""
    path = os.environ.get("VOSRT_CUDA_EMULATED_LIBRARY", "")
    if not Path(path).is_file():
        _skip_or_fail("VOSRT_CUDA_EMULATED_LIBRARY names no libvosrt_cuda_emulated.so", required="cuda-emulated")
    monkeypatch.setenv("VOSRT_CUDA_LIBRARY", path)
    return Path(path)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.needs_cuda)])
def cuda_core(request: pytest.FixtureRequest) -> str:
    """Runs a test on the emulated kernels, and once more on a GPU."""
    if request.param == "emulated":
        request.getfixturevalue("cuda_emulated")
        return "emulated"
    try:
        load_cuda_library().device(0)
    except VosrtError as error:
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail(f"{error} (FAIL_WITHOUT_CUDA=1)")
        pytest.skip(str(error))
    return "gpu"


@pytest.fixture(params=["numpy", "native"])
def memory_factory(request: pytest.FixtureRequest) -> MemoryFactory:
    """Creates memories in fp32 on each core: ``memory_factory(height, width, channels, **propagation_options)``."""
    if request.param == "numpy":
        return lambda h, w, k, **options: NumpyMemory(h, w, k, PropagationOptions(**options))
    module = request.getfixturevalue("native")

    def create(height: int, width: int, channels: int, **options: Any) -> Memory:
        chosen = vars(PropagationOptions(**options))
        memory: Memory = module.Memory(height, width, channels, **chosen, precision="fp32", threads=2)
        return memory

    return create


@pytest.fixture
def unit_embedding() -> Callable[..., F32Array]:
    """Random embeddings with unit length per cell: ``unit_embedding(seed, height, width, channels)``."""

    def create(seed: int, height: int, width: int, channels: int) -> F32Array:
        array = np.random.default_rng(seed).standard_normal((height, width, channels)).astype(np.float32)
        normalised: F32Array = array / np.linalg.norm(array, axis=-1, keepdims=True)
        return normalised

    return create


@pytest.fixture(scope="session")
def tiny_clip() -> tuple[U8Array, U8Array]:
    """Six frames u8 [6, 64, 96, 3] of two squares in motion, and masks u8 [6, 64, 96] with ids 1 and 2."""
    texture = np.random.default_rng(7).integers(90, 130, (64, 96, 3), dtype=np.uint8)
    frames = np.repeat(texture[None], 6, axis=0)
    masks = np.zeros((6, 64, 96), dtype=np.uint8)
    for t in range(6):
        for object_id, (y, x), colour in ((1, (8, 8 + 8 * t), (20, 20, 240)), (2, (40, 64 - 8 * t), (240, 40, 20))):
            area = (slice(y, y + 24), slice(x, x + 24))
            frames[t][area] = colour
            masks[t][area] = object_id
    return frames, masks


@pytest.fixture
def resumes(tiny_clip: tuple[U8Array, U8Array]) -> Callable[[Stream, Stream], None]:
    """``resumes(stream, copy)``: saved after the clip's first frame and loaded, a stream goes on bit for bit."""

    def check(stream: Stream, copy: Stream) -> None:
        frames, masks = tiny_clip
        stream.start(frames[0], masks[0])
        copy.load(stream.save())
        stream.remove(1)
        copy.remove(1)
        for frame in frames[1:]:
            ours, theirs = copy.step(frame), stream.step(frame)
            assert ours.index == theirs.index
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.confidence, theirs.confidence)

    return check


@pytest.fixture
def fake_bundle(tmp_path: Path) -> Path:
    """A bundle for ``--engine fake``, which never runs its graph: a cast, with the interface of an encoder."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; it comes with: pip install 'vosrt[export]'")
    frames = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    embedding = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", "h", "w", 32])
    cast = onnx.helper.make_node("Cast", ["frames"], ["embedding"], to=onnx.TensorProto.FLOAT)
    data = onnx.helper.make_model(onnx.helper.make_graph([cast], "encoder", [frames], [embedding])).SerializeToString()
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(data)
    entry = GraphFile(file="encoder.onnx", sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), precision="fp32")
    encoder = EncoderSpec(channels=32, feature="key")
    manifest = Manifest(name="tiny", trained=False, summary="for tests", encoder=encoder, graphs={"encoder": entry})
    write_manifest(manifest, folder / "manifest.json")
    return folder
