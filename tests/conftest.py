"""Fixtures shared by all tests: data beside the checkout, tiny synthetic clips, memories on every core."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tests.fakes.bundles import cast_encoder, write_bundle
from tests.fakes.media import save_davis
from vosrt.bundle import load_bundle
from vosrt.core import native as core
from vosrt.core.memory import Memory
from vosrt.core.reference import NumpyMemory
from vosrt.cuda.device import load_cuda_library
from vosrt.errors import OptionError, VosrtError
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
        core.libvosrt()
    except OptionError as error:
        _skip_or_fail(f"native core not built: {error}", required="native")
    return core


@pytest.fixture(scope="session")
def emulated_library(request: pytest.FixtureRequest) -> Path:
    """Path of libvosrt_cuda_emulated.so: ``VOSRT_CUDA_EMULATED_LIBRARY``, or a build of the sources in build/emulated.

    The build is kept until the sources change. Only a machine without CMake or a C++ compiler skips the tests.
    """
    if path := os.environ.get("VOSRT_CUDA_EMULATED_LIBRARY"):
        if not Path(path).is_file():
            pytest.fail(f"VOSRT_CUDA_EMULATED_LIBRARY names no file: {path}")
        return Path(path)
    native, folder = REPOSITORY / "runtime" / "native", REPOSITORY / "build" / "emulated"
    if not native.is_dir():
        _skip_or_fail("no sources of the emulated GPU library beside the tests", required="cuda-emulated")
    if shutil.which("cmake") is None or not any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])):
        _skip_or_fail(
            "the emulated GPU library needs CMake (pip install cmake) and a C++20 compiler", required="cuda-emulated"
        )
    digest = hashlib.sha256()
    sources = [*native.glob("*.*"), *native.glob("include/*"), *native.glob("src/**/*.*"), *native.glob("cuda/**/*.*")]
    for source in sorted([*sources, *native.glob("../src/vosrt/*.txt")]):
        digest.update(str(source).encode() + source.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    library, stamp = folder / "cuda" / "libvosrt_cuda_emulated.so", folder / "sources.sha256"
    with (folder / "lock").open("w") as lock:  # two runs of the tests must not build into one folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.is_file() and stamp.is_file() and stamp.read_text() == digest.hexdigest():
            return library
        request.config.pluginmanager.getplugin("terminalreporter").write_line(f"building {library}: about a minute")
        configure = ["-S", str(native), "-B", str(folder), "-DVOSRT_CUDA=OFF", "-DVOSRT_CUDA_EMULATED=ON"]
        build = ["--build", str(folder), "--target", "vosrt_cuda_emulated", "--parallel", str(os.cpu_count())]
        for arguments in (configure, build):
            done = subprocess.run(
                ["cmake", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            if done.returncode:
                pytest.fail(f"the emulated GPU library does not build:\n{done.stdout[-4000:]}")
        stamp.write_text(digest.hexdigest())
    return library


@pytest.fixture
def cuda_emulated(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """libvosrt_cuda with its kernels run on the processor, in place of the real one."""
    monkeypatch.setenv("VOSRT_CUDA_LIBRARY", str(emulated_library))
    return emulated_library


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


@pytest.fixture(scope="session", params=["blackswan", "bmx-trees", "dog"])
def real_clip(request: pytest.FixtureRequest, shared_data: Path) -> Callable[[int], tuple[U8Array, U8Array]]:
    """``real_clip(count)``: frames u8 [count, 160, 285, 3] of a sequence, and marks u8 [160, 285] of the first."""
    sequence: str = request.param
    root, size = shared_data / "data" / "davis16-dev", (285, 160)

    def load(count: int) -> tuple[U8Array, U8Array]:
        def at_a_third(path: Path, mode: str, how: Image.Resampling) -> U8Array:
            with Image.open(path) as picture:
                return np.asarray(picture.convert(mode).resize(size, how), np.uint8)

        names = sorted((root / "JPEGImages" / "480p" / sequence).glob("*.jpg"))[:count]
        frames = [at_a_third(name, "RGB", Image.Resampling.BILINEAR)[..., ::-1] for name in names]
        mask = root / "Annotations" / "480p" / sequence / f"{names[0].stem}.png"
        return np.stack(frames), (at_a_third(mask, "L", Image.Resampling.NEAREST) > 0).astype(np.uint8)

    return load


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_clip: tuple[U8Array, U8Array]) -> Path:
    """The default network with layers in int8."""
    quantise = pytest.importorskip("vosrt_export.quantise")
    root = tmp_path_factory.mktemp("int8")
    clip = save_davis(root / "davis", "squares", *tiny_clip)
    options = quantise.QuantiseOptions(frames=2, threads=1, max_drop=100)
    source = str(load_bundle("default").path)
    quantise.quantise_bundle(source, root / "bundle", [str(clip)], root / "davis", options)
    return root / "bundle"


@pytest.fixture
def bundle_of(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The directory of a packaged bundle, or that of ``"int8"``, which is made for the tests."""

    def find(name: str) -> Path:
        if name != "int8":
            return load_bundle(name).path
        made: Path = request.getfixturevalue("int8_bundle")
        return made

    return find


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames with a square, and its mask beside them."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(6):
        frame = np.full((48, 64, 3), 90, np.uint8)
        frame[10:30, 10 + 4 * index : 34 + 4 * index] = (200, 60, 30)
        Image.fromarray(frame).save(folder / f"{index:05}.png")
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 10:34] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return folder


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
    """A bundle for ``--engine fake``, in a folder of the test."""
    return write_bundle(tmp_path / "bundle", cast_encoder(32), channels=32, name="tiny")


@pytest.fixture(scope="module")
def shared_fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for ``--engine fake``, which all tests of a module read."""
    return write_bundle(tmp_path_factory.mktemp("fake") / "bundle", cast_encoder(32), channels=32, name="tiny")
