"""Engines on a tiny graph: what runs, what is refused and why, sessions, threads."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.tensorrt import mean_colours
from vosrt.bundle import EncoderSpec
from vosrt.engines import openvino
from vosrt.engines.fake import FakeEngine
from vosrt.engines.onnxruntime import OnnxRuntimeEngine, cpu_engine
from vosrt.engines.openvino import OpenVinoEngine
from vosrt.engines.select import check_name, create_encoder_engine
from vosrt.errors import EngineError, MissingExtraError, OptionError, VosrtError
from vosrt.types import Precision, U8Array

SPEC = EncoderSpec(channels=3, feature="res4")
AXES = {"frames": ("n", "height", "width", None)}


@pytest.fixture(scope="module")
def graph(encoder_graph: Path) -> Path:
    """An encoder without weights: the mean colour of every 8 x 8 cell, normalised."""
    return encoder_graph


def _frames(height: int, width: int, seed: int = 0) -> U8Array:
    return np.random.default_rng(seed).integers(1, 256, (1, height, width, 3), dtype=np.uint8)


def test_the_cpu_engine_computes_the_graph(graph: Path) -> None:
    """It takes any size, with inputs and outputs by name."""
    engine = create_encoder_engine(graph, SPEC, engine="cpu", threads=1)
    for height, width in ((16, 24), (64, 32), (16, 24)):
        frames = _frames(height, width)
        np.testing.assert_allclose(engine.run({"frames": frames})["embedding"], mean_colours(frames), atol=1e-5)
    assert (engine.info.name, engine.info.precision, engine.info.reason) == ("cpu", "fp32", "asked for")
    assert "onnxruntime" in engine.info.version


def test_the_openvino_engine_computes_the_graph(graph: Path, skip_or_fail: Callable[..., None]) -> None:
    """It does in each precision for several sizes; where OpenVINO does not run, its reason skips the test."""
    wanted: list[tuple[Precision, float]] = [("fp32", 1e-5), ("bf16", 0.01)]
    for precision, tolerance in wanted:
        try:
            engine = create_encoder_engine(graph, SPEC, engine="openvino", precision=precision)
        except (EngineError, MissingExtraError) as error:
            skip_or_fail(str(error), required="openvino")
        assert (engine.info.name, engine.info.precision) == ("openvino", precision)
        for height, width in ((64, 96), (32, 24), (64, 96)):
            frames = _frames(height, width)
            embedding = engine.run({"frames": frames})["embedding"]
            np.testing.assert_allclose(embedding, mean_colours(frames), atol=tolerance)


def test_results_of_openvino_outlive_the_next_run(graph: Path, skip_or_fail: Callable[..., None]) -> None:
    """An embedding waits in a queue while the next frame is encoded; the two must not share memory."""
    try:
        engine = create_encoder_engine(graph, SPEC, engine="openvino", precision="fp32")
    except MissingExtraError as error:
        skip_or_fail(str(error), required="openvino")
    first = engine.run({"frames": _frames(32, 32, seed=1)})["embedding"]
    kept = first.copy()
    engine.run({"frames": _frames(32, 32, seed=2)})
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(EngineError, match="'frames' is float32; expected uint8"):
        engine.run({"frames": _frames(32, 32).astype(np.float32)})


def test_an_openvino_request_is_asked_by_one_thread_at_a_time(graph: Path, skip_or_fail: Callable[..., None]) -> None:
    """While it runs it is busy even for who wants to know the type of an input."""
    try:
        engine = OpenVinoEngine(graph, AXES, bf16=False, threads=1, reason="")
    except MissingExtraError as error:
        skip_or_fail(str(error), required="openvino")
    session = engine._create_session((("height", 16), ("n", 1), ("width", 24)))

    class Guarded:
        def __getattr__(self, name: str) -> Any:
            assert session.lock.locked(), name
            return getattr(session.request, name)

    frames = _frames(16, 24)
    embedding = engine._run(session._replace(request=Guarded()), {"frames": frames})["embedding"]
    np.testing.assert_allclose(embedding, mean_colours(frames), atol=1e-5)


def test_a_signal_after_several_openvino_engines_is_survived(graph: Path, skip_or_fail: Callable[..., None]) -> None:
    """Engines come and go in one process; Ctrl-C must still find a stack to run on."""
    if importlib.util.find_spec("openvino") is None:
        skip_or_fail("openvino is not installed", required="openvino")
    code = (
        "import gc, os, signal, sys; from pathlib import Path\n"
        "from vosrt.engines.openvino import OpenVinoEngine\n"
        "signal.signal(signal.SIGINT, lambda *_: print('survived'))\n"
        "axes = {'frames': ('n', 'height', 'width', None)}\n"
        "engines = [OpenVinoEngine(Path(sys.argv[1]), axes, bf16=False, threads=1, reason='') for _ in range(2)]\n"
        "import numpy; [engine.run({'frames': numpy.ones((1, 16, 16, 3), 'u1')}) for engine in engines]\n"
        "while engines: engines.pop(0); gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(graph)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_threads_share_an_engine(name: str, graph: Path, skip_or_fail: Callable[..., None]) -> None:
    """Runs of several sizes from several threads give each caller its own result."""
    try:
        engine = create_encoder_engine(graph, SPEC, engine=name, precision="fp32", threads=1)
    except MissingExtraError as error:
        skip_or_fail(str(error), required=name)
    inputs = [_frames(16 + 8 * (seed % 3), 24, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda frames: engine.run({"frames": frames})["embedding"], inputs))
    for frames, embedding in zip(inputs, outputs, strict=True):
        np.testing.assert_allclose(embedding, mean_colours(frames), atol=1e-5)


def test_few_sessions_are_kept(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One session per frame size and batch size, the four last frame sizes stay: memory does not grow with time."""
    compiled: list[tuple[int, int]] = []
    create = OnnxRuntimeEngine._create_session

    def record(engine: OnnxRuntimeEngine, sizes: tuple[tuple[str, int], ...]) -> Any:
        compiled.append((dict(sizes)["n"], dict(sizes)["height"]))
        return create(engine, sizes)

    monkeypatch.setattr(OnnxRuntimeEngine, "_create_session", record)
    engine = cpu_engine(graph, AXES, threads=1, reason="")
    for count, height in [(1, 16), (2, 16), (1, 24), (1, 16), (2, 16), (1, 32), (1, 40), (1, 16), (1, 48), (1, 24)]:
        engine.run({"frames": np.repeat(_frames(height, 16), count, axis=0)})
    assert compiled == [(1, 16), (2, 16), (1, 24), (1, 32), (1, 40), (1, 48), (1, 24)]
    assert len(engine._sessions) == 4


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs 'frames'"),
        ({"frames": np.zeros((16, 16, 3), dtype=np.uint8)}, "needs 'frames' with axes"),
        ({"frames": np.zeros((1, 16, 16, 3), dtype=np.float32)}, r"cannot run encoder\.onnx"),
    ],
)
def test_wrong_inputs_are_engine_errors(graph: Path, inputs: dict[str, Any], message: str) -> None:
    """Every error of ONNX Runtime becomes one line."""
    engine = cpu_engine(graph, AXES, threads=1, reason="")
    with pytest.raises(EngineError, match=message) as caught:
        engine.run(inputs)
    assert "\n" not in str(caught.value)


def test_a_broken_graph_is_found_when_loading(tmp_path: Path) -> None:
    broken = tmp_path / "encoder.onnx"
    broken.write_bytes(b"not a graph")
    for name in ("cpu", "auto"):
        with pytest.raises(EngineError, match=r"cannot load encoder\.onnx") as caught:
            create_encoder_engine(broken, SPEC, engine=name)
        assert "\n" not in str(caught.value)


def test_a_missing_engine_names_the_command(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name it is an error; on the way to the CPU provider it is a reason."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vosrt\[openvino\]'"):
        create_encoder_engine(graph, SPEC, engine="openvino")
    engine = create_encoder_engine(graph, SPEC, engine="auto")
    assert engine.info.name == "cpu"
    assert "openvino refused: OpenVINO is not installed" in engine.info.reason


def test_a_bare_installation_says_which_line_is_missing(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives one line instead of a list of refusals."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(MissingExtraError, match=r"^an engine .* is not installed; .*: pip install 'vosrt\[cpu\]'$"):
        create_encoder_engine(graph, SPEC, engine="auto")
    with pytest.raises(MissingExtraError, match=r"pip install 'vosrt\[cpu\]'$"):
        create_encoder_engine(graph, SPEC, engine="cpu")


def test_a_former_name_is_taken_with_a_warning(
    graph: Path, caplog: pytest.LogCaptureFixture, skip_or_fail: Callable[..., None]
) -> None:
    """Scripts that say `openvino-direct` go on, and learn the plain name."""
    for old in ("tensorrt-direct", "tensorrt-rtx-direct"):
        with pytest.raises((OptionError, MissingExtraError)):  # both wrong input: exit code 2
            create_encoder_engine(graph, SPEC, engine=old)
        check_name(old)  # as commands do first: one run warns once
        assert caplog.messages == [f"the engine {old} is called {old.removesuffix('-direct')}; use that name"]
        caplog.clear()
    try:
        engine = create_encoder_engine(graph, SPEC, engine="openvino-direct", threads=1)
    except MissingExtraError as error:
        skip_or_fail(str(error), required="openvino")
    assert engine.info.name == "openvino"
    assert caplog.messages == ["the engine openvino-direct is called openvino; use that name"]


def test_auto_precision_follows_the_processor(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bf16 where that is native and fp32 elsewhere; one that is asked for is taken."""
    chosen: list[bool] = []

    def record(*_: object, bf16: bool, **__: object) -> OnnxRuntimeEngine:
        chosen.append(bf16)
        return cpu_engine(graph, AXES, threads=1, reason="")

    monkeypatch.setattr(openvino, "OpenVinoEngine", record)
    for native in (True, False):
        monkeypatch.setattr(openvino, "processor_has_bf16", lambda native=native: native)
        for precision in ("auto", "fp32", "bf16"):
            create_encoder_engine(graph, SPEC, engine="openvino", precision=precision)
    assert chosen == [True, False, True, False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "tensorflow"},
            "engine is 'tensorflow'; expected one of auto, tensorrt, .*, cuda, openvino, cpu$",
        ),
        (
            {"engine": "cpu", "precision": "bf16"},
            "the cpu engine has no bf16; expected auto, fp32, or engine tensorrt, tensorrt-rtx, openvino$",
        ),
    ],
)
def test_impossible_wishes_are_refused(graph: Path, options: dict[str, Any], message: str) -> None:
    """They are refused before anything is loaded."""
    with pytest.raises(OptionError, match=message):
        create_encoder_engine(graph, SPEC, **options)


def test_bf16_without_an_engine_that_has_it_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision that was asked for is never dropped in silence."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(VosrtError, match="cpu refused: the cpu engine has no bf16"):
        create_encoder_engine(graph, SPEC, precision="bf16")


def test_the_fake_engine_keeps_the_contract() -> None:
    """Ragged sizes round up, cells have unit length, equal colours match, different ones do not."""
    spec = EncoderSpec(channels=64, feature="res4")
    frames = np.zeros((1, 20, 33, 3), dtype=np.uint8)
    frames[:, :, 16:] = (200, 30, 90)
    engine = FakeEngine(spec)
    embedding = engine.run({"frames": frames})["embedding"]
    assert embedding.shape == (1, 3, 5, 64)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1, atol=1e-5)
    assert embedding[0, 0, 0] @ embedding[0, 2, 1] == pytest.approx(1, abs=1e-5)
    assert embedding[0, 0, 0] @ embedding[0, 0, 4] < 0.6
    np.testing.assert_array_equal(embedding, FakeEngine(spec).run({"frames": frames})["embedding"])
    with pytest.raises(EngineError):
        engine.run({})
