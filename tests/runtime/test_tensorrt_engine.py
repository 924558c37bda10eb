"""The TensorRT engine class against a TensorRT and a CUDA in host memory: buffers, order of work, graphs, refusals."""

from __future__ import annotations

import ctypes
import gc
import inspect
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.tensorrt import COMPUTES, TENSORS, write_engine
from vosrt.bundle import EncoderSpec
from vosrt.cuda.runtime import BindingsRuntime, CudaQueue
from vosrt.encoder import Embedding, FrameEncoder, stays_on_gpu
from vosrt.engines.base import DeviceEngine, EngineInfo, largest_batch
from vosrt.engines.mask_axes import MASK_AXES, mask_sizes
from vosrt.engines.select import create_encoder_engine, create_mask_engine
from vosrt.engines.tensorrt import CUDA_GRAPH_VARIABLE, TensorRtEngine
from vosrt.engines.tensorrt_files import EngineRecord, Profile
from vosrt.engines.tensorrt_flavour import FLAVOURS, TENSORRT, TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, MissingExtraError, OptionError
from vosrt.types import U8Array

SPEC = EncoderSpec(channels=3, feature="res4")
AXES = {"frames": ("n", "height", "width", None)}
GRAPH = b"the graph itself is not read"
LANDSCAPE = Profile(minimum=(32, 32), optimum=(48, 64), maximum=(64, 96))
PORTRAIT = Profile(minimum=(96, 32), optimum=(96, 48), maximum=(128, 64))
PLAN = json.dumps({"profiles": [[p.minimum, p.optimum, p.maximum] for p in (LANDSCAPE, PORTRAIT)]}).encode()
VERSIONS = {"tensorrt": "10.9.0.34", "tensorrt-rtx": "1.7.1.116"}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A bundle's graph with one fitting engine per flavour beside it."""
    path = tmp_path / "encoder.onnx"
    path.write_bytes(GRAPH)
    for flavour in FLAVOURS.values():
        add_engine(path, flavour)
    return path


def add_engine(graph: Path, /, flavour: Flavour, plan: bytes = PLAN, **changes: Any) -> EngineRecord:
    """Put an engine with its record beside a graph."""
    fields = {"flavour": flavour.name, "version": VERSIONS[flavour.name], **changes}
    return write_engine(graph, plan, (LANDSCAPE, PORTRAIT), **fields)


def frames_of(height: int, width: int, seed: int = 0) -> U8Array:
    return np.random.default_rng(seed).integers(1, 256, (1, height, width, 3), dtype=np.uint8)


def engine_of(graph: Path, flavour: Flavour = TENSORRT, **options: Any) -> TensorRtEngine:
    return TensorRtEngine(graph, AXES, flavour=flavour, reason="test", **options)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("flavour", [TENSORRT, TENSORRT_RTX])
def test_it_computes_the_graph(graph: Path, fake_nvidia: Any, flavour: Flavour, cuda_graph: bool) -> None:
    """Sizes of both profiles, again and again, in and out of the sizes that are kept."""
    engine = engine_of(graph, flavour, cuda_graph=cuda_graph)
    for seed, (height, width) in enumerate([(48, 64), (96, 48), (48, 64), (48, 64), (64, 96), (48, 64), (48, 64)]):
        frames = frames_of(height, width, seed)
        embedding = engine.run({"frames": frames})["embedding"]
        np.testing.assert_allclose(embedding, fake_nvidia.mean_colours(frames), atol=1e-6)
    info = engine.info
    assert (info.name, info.precision, info.reason) == (flavour.name, "fp16", "test")
    assert info.version == f"{flavour.name} {VERSIONS[flavour.name]}, CUDA 13.1, NVIDIA GeForce RTX 3060 (sm_86)"


def test_results_outlive_the_next_run(graph: Path, fake_nvidia: Any) -> None:
    """An embedding waits in a queue while the next frame is encoded."""
    engine = engine_of(graph)
    first = engine.run({"frames": frames_of(48, 64, 1)})["embedding"]
    kept = first.copy()
    engine.run({"frames": frames_of(48, 64, 2)})
    np.testing.assert_array_equal(first, kept)


def test_buffers_are_allocated_once_per_size_and_freed(graph: Path, fake_nvidia: Any) -> None:
    """A size has six buffers, eight from its second run on; four sizes are kept, and none outlives the engine."""
    engine = engine_of(graph)
    counts = []
    for height in (32, 32, 48, 48, 64, 32, 40, 56, 48):
        engine.run({"frames": frames_of(height, 64)})
        gc.collect()
        counts.append(len(fake_nvidia.cuda.memory))
    assert counts == [6, 8, 14, 16, 22, 22, 28, 26, 26]
    assert len(fake_nvidia.cuda.queues) == 3, "one for the network, one for uploads, one for captures"
    del engine
    gc.collect()
    assert fake_nvidia.cuda.memory == {}
    assert fake_nvidia.cuda.pinned == set()
    assert fake_nvidia.cuda.events == {}


def test_a_cuda_graph_replaces_the_calls(graph: Path, fake_nvidia: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a size prepares, the second records, and from then on a run is one launch."""
    monkeypatch.setenv(CUDA_GRAPH_VARIABLE, "1")
    engine = engine_of(graph)
    for _ in range(5):
        engine.run({"frames": frames_of(48, 64)})
    assert fake_nvidia.cuda.launches == 4
    assert len(fake_nvidia.cuda.graphs) == 1
    monkeypatch.setenv(CUDA_GRAPH_VARIABLE, "yes")
    with pytest.raises(OptionError, match="VOSRT_CUDA_GRAPH is 'yes'; expected 1 or 0"):
        engine_of(graph)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_frame_is_uploaded_while_the_network_computes(graph: Path, fake_nvidia: Any, cuda_graph: bool) -> None:
    """It is on a second stream, in two alternating buffers; the host waits for old uploads alone.

    In the steady state nothing is allocated and nothing created.
    """
    engine, cuda = engine_of(graph, cuda_graph=cuda_graph), fake_nvidia.cuda
    for seed in range(2):
        engine.run_on_device({"frames": frames_of(48, 64, seed)})
    before = (cuda.allocations, cuda.created, len(cuda.graphs))
    steps = []
    for seed in range(4):
        cuda.calls.clear()
        engine.run_on_device({"frames": frames_of(48, 64, seed)})
        steps.append(list(cuda.calls))
    (uploaded, taken), network = (3, 1), "graph" if cuda_graph else "network"
    compute, uploads = engine.stream, engine.stream + 1
    for step, shift in zip(steps, (0, 1, 0, 1), strict=True):
        assert step == [
            f"host waits for {uploaded + shift}",  # the pinned memory is free: two frames ago
            f"{uploads} waits for {taken + shift}",  # so is the GPU's
            f"HostToDevice on {uploads}",
            f"record {uploaded + shift} on {uploads}",
            f"{compute} waits for {uploaded + shift}",
            f"DeviceToDevice on {compute}",
            f"record {taken + shift} on {compute}",
            f"{network} on {compute}",
        ]
    assert (cuda.allocations, cuda.created, len(cuda.graphs)) == before


def test_threads_do_not_wait_for_each_others_results(graph: Path, fake_nvidia: Any) -> None:
    """One waits for its own embedding, not for the stream, on which others queue their frames meanwhile."""
    engine, cuda = engine_of(graph), fake_nvidia.cuda
    engine.run({"frames": frames_of(48, 64)})
    cuda.calls.clear()
    engine.run({"frames": frames_of(48, 64)})
    assert cuda.calls[-3:] == [f"DeviceToHost on {engine.stream}", f"record 6 on {engine.stream}", "host waits for 6"]
    assert not any("all of" in call for call in cuda.calls)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_frames_may_be_on_the_gpu(graph: Path, fake_nvidia: Any, cuda_graph: bool) -> None:
    """They are copied there, behind what writes them on the engine's stream; host frames may come between."""
    engine, cuda = engine_of(graph, cuda_graph=cuda_graph), fake_nvidia.cuda
    frames = [frames_of(48, 64, seed) for seed in range(6)]
    on_gpu = CudaQueue(BindingsRuntime()).allocate(frames[0].shape, frames[0].dtype, "a frame")
    engine.run({"frames": frames[0]})
    for seed in (0, 1, 2, 4):
        tensor, source = replace(on_gpu, stream=engine.stream), frames[seed]
        cuda.submit(engine.stream, partial(ctypes.memmove, on_gpu.pointer, source.ctypes.data, source.nbytes))
        cuda.calls.clear()
        output = engine.run_on_device({"frames": tensor})["embedding"]
        assert not any("HostToDevice" in call for call in cuda.calls)
        expected = engine.run({"frames": frames[seed + 1]})["embedding"]
        np.testing.assert_allclose(expected, fake_nvidia.mean_colours(frames[seed + 1]), atol=1e-6)
        engine.run_on_device({"frames": tensor})
        cuda.cudaStreamSynchronize(engine.stream)
        seen = np.ctypeslib.as_array(ctypes.cast(output.pointer, ctypes.POINTER(ctypes.c_float)), output.shape)
        np.testing.assert_allclose(seen, fake_nvidia.mean_colours(frames[seed]), atol=1e-6)
    wrong = replace(tensor, dtype=np.dtype(np.float32))
    with pytest.raises(EngineError, match="'frames' is float32; expected uint8"):
        engine.run_on_device({"frames": wrong})


@pytest.mark.parametrize("capturable", [False, True])
def test_rtx_captures_by_itself_or_is_recorded(graph: Path, fake_nvidia: Any, capturable: bool) -> None:
    """It captures where it says that it cannot be recorded; a graph on top of its own is never recorded."""
    fake_nvidia.tensorrt_rtx.capturable = capturable
    for wanted in (False, True):
        engine = engine_of(graph, TENSORRT_RTX, cuda_graph=wanted)
        for _ in range(3):
            engine.run({"frames": frames_of(48, 64)})
        config = fake_nvidia.tensorrt_rtx.contexts[-1].config
        by_itself = config is not None and config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert by_itself == (wanted and not capturable)
        assert fake_nvidia.cuda.launches == (2 if wanted and capturable else 0)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_outputs_stay_on_the_device(graph: Path, fake_nvidia: Any, cuda_graph: bool) -> None:
    """They are not awaited, and are whole for work that is queued on their stream."""
    engine = engine_of(graph, cuda_graph=cuda_graph)
    assert isinstance(engine, DeviceEngine)
    copies = []
    for seed in range(4):
        output = engine.run_on_device({"frames": frames_of(48, 64, seed)})["embedding"]
        assert fake_nvidia.cuda.queues[output.stream].waiting, "somebody waited"
        interface = output.__cuda_array_interface__
        assert (interface["shape"], interface["typestr"], interface["stream"]) == ((1, 6, 8, 3), "<f4", output.stream)
        copy = np.zeros(output.shape, np.float32)
        source = fake_nvidia.cuda.memory[interface["data"][0]]

        def consume(copy: Any = copy, source: Any = source) -> None:
            copy[...] = np.frombuffer(source, np.float32).reshape(copy.shape)

        fake_nvidia.cuda.submit(output.stream, consume)
        copies.append(copy)
    fake_nvidia.cuda.cudaStreamSynchronize(output.stream)
    for seed, copy in enumerate(copies):
        np.testing.assert_allclose(copy, fake_nvidia.mean_colours(frames_of(48, 64, seed)), atol=1e-6)


def test_threads_share_an_engine(graph: Path, fake_nvidia: Any) -> None:
    engine = engine_of(graph)
    inputs = [frames_of(32 + 8 * (seed % 3), 64, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda frames: engine.run({"frames": frames})["embedding"], inputs))
    for frames, embedding in zip(inputs, outputs, strict=True):
        np.testing.assert_allclose(embedding, fake_nvidia.mean_colours(frames), atol=1e-6)


def test_a_size_that_no_profile_takes_names_the_command(graph: Path, fake_nvidia: Any) -> None:
    with pytest.raises(EngineError, match="takes none of 72x64") as caught:
        engine_of(graph).run({"frames": frames_of(72, 64)})
    sizes = "32x32:48x64:64x96,96x32:96x48:128x64,72x64"
    assert str(caught.value).endswith(f"vos-export engine {graph.parent} --flavour tensorrt --sizes {sizes}")


def test_a_batch_goes_through_at_once(graph: Path, fake_nvidia: Any) -> None:
    """It does if the engine was built for it; frames of streams are cut into runs that it takes."""
    plan = json.dumps({**json.loads(PLAN), "batch": 6}).encode()
    add_engine(graph, TENSORRT, plan=plan, batch=6)
    engine = engine_of(graph)
    frames = np.concatenate([frames_of(48, 64, seed) for seed in range(6)])
    np.testing.assert_allclose(engine.run({"frames": frames})["embedding"], fake_nvidia.mean_colours(frames), atol=1e-6)
    assert largest_batch(engine) == 6
    encoded = FrameEncoder(SPEC, engine).encode_each([*frames, frames[0]], [None] * 7)
    for i, embedding in enumerate(encoded):
        assert isinstance(embedding, Embedding)
        np.testing.assert_allclose(embedding.array, fake_nvidia.mean_colours(frames)[i % 6], atol=1e-6)
    with pytest.raises(EngineError, match="was built for 6 frames at once and 7 were given") as caught:
        engine.run({"frames": np.concatenate([frames, frames[:1]])})
    sizes = "32x32:48x64:64x96,96x32:96x48:128x64"
    assert str(caught.value).endswith(f"vos-export engine {graph.parent} --flavour tensorrt --sizes {sizes} --batch 7")


def mask_inputs(role: str, height: int, width: int, objects: int) -> dict[str, Any]:
    """Inputs of a mask network as the fake has it, for a frame of this size."""
    random, sizes = np.random.default_rng(0), mask_sizes(role, height, width, objects)
    found = {}
    for name in MASK_AXES[role]:
        kind, axes = TENSORS[role][name]
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in axes]
        values = random.random(shape)
        found[name] = (255 * values).astype(np.uint8) if kind == "UINT8" else values.astype(np.float32)
    return found


@pytest.mark.parametrize("role", MASK_AXES)
def test_mask_networks_run_on_their_own_engines(graph: Path, fake_nvidia: Any, role: str) -> None:
    """They do so beside an encoder on TensorRT, of any precision, and take as many objects as they were built for."""
    plan = json.dumps({**json.loads(PLAN), "batch": 5, "role": role}).encode()
    add_engine(graph, TENSORRT, plan=plan, batch=5, graph=role)
    for precision in ("fp16", "int8"):
        engine = create_mask_engine(graph, role, EngineInfo("tensorrt", precision, "", ""))
        assert (engine.info.name, engine.info.reason) == ("tensorrt", "as the encoder")
        assert stays_on_gpu(engine)
        for size, objects in (((48, 64), 1), ((48, 64), 5), ((96, 48), 2)):
            given = mask_inputs(role, *size, objects)
            (output,) = engine.run(given).values()
            np.testing.assert_allclose(output, COMPUTES[role](given), atol=1e-6)
    with pytest.raises(EngineError, match=r"was built for 5 objects and 6 were given; .* --objects 6$"):
        engine.run(mask_inputs(role, 48, 64, 6))
    with pytest.raises(EngineError, match="takes none of 72x64"):
        engine.run(mask_inputs(role, 72, 64, 1))


def test_mask_networks_without_an_engine_say_how_to_build_one(encoder_graph: Path, fake_nvidia: Any) -> None:
    """They run elsewhere, and the reason has the command."""
    info = create_mask_engine(encoder_graph, "decoder", EngineInfo("tensorrt", "fp16", "", "")).info
    assert info.name != "tensorrt"
    assert "tensorrt refused: no fp16 engine for tensorrt 10.9.0.34 on sm_86" in info.reason
    assert f"vos-export engine {encoder_graph.parent} --flavour tensorrt" in info.reason


def test_failures_of_tensorrt_and_cuda_are_one_line(graph: Path, fake_nvidia: Any) -> None:
    """The line has their own words, and the engine goes on afterwards."""
    engine = engine_of(graph, cuda_graph=True)
    frames = frames_of(48, 64)
    with pytest.raises(EngineError, match="'frames' is float32; expected uint8"):
        engine.run({"frames": frames.astype(np.float32)})
    engine.run({"frames": frames})
    fake_nvidia.tensorrt.contexts[-1].fails = True
    with pytest.raises(EngineError, match=r"^tensorrt cannot run: cannot enqueue$"):
        engine.run({"frames": frames})
    fake_nvidia.tensorrt.contexts[-1].fails = False
    np.testing.assert_allclose(engine.run({"frames": frames})["embedding"], fake_nvidia.mean_colours(frames), atol=1e-6)
    fake_nvidia.cuda.memory_left = 100
    with pytest.raises(EngineError, match=r"^CUDA failed in cudaMalloc: MemoryAllocation$"):
        engine.run({"frames": frames_of(64, 64)})


def test_the_narrowest_precision_is_taken_unless_one_is_asked_for(graph: Path, fake_nvidia: Any) -> None:
    """It is taken of the engines that were built; the description says what runs."""
    add_engine(graph, TENSORRT, precision="fp32")
    for precision, chosen in (("auto", "fp16"), ("fp32", "fp32")):
        created = create_encoder_engine(graph, SPEC, engine="tensorrt", precision=precision)  # type: ignore[arg-type]
        assert created.info.precision == chosen
    with pytest.raises(EngineError, match=r"no bf16 engine for tensorrt 10\.9\.0\.34 on sm_86.*it computes in fp16"):
        create_encoder_engine(graph, SPEC, engine="tensorrt", precision="bf16")


def test_auto_takes_an_engine_of_the_bundle(graph: Path, fake_nvidia: Any) -> None:
    """TensorRT comes before TensorRT-RTX if both have one; the reasons name what was passed over."""
    assert create_encoder_engine(graph, SPEC).info.name == "tensorrt"
    for path in (graph.parent / "engines").glob("encoder-tensorrt-10*"):
        path.unlink()
    info = create_encoder_engine(graph, SPEC).info
    assert info.name == "tensorrt-rtx"
    assert "tensorrt refused: no int8/fp8/fp16/bf16/fp32 engine for tensorrt 10.9.0.34 on sm_86" in info.reason


STALE: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": "10.8.0.1"}, r"it is for tensorrt 10\.8\.0\.1"),
    "architecture": ({"architecture": "sm_89"}, "it is for sm_89"),
    "graph": ({"graph_sha256": "0" * 64}, "it was built from another graph"),
}


@pytest.mark.parametrize("name", STALE)
def test_an_engine_for_something_else_is_never_loaded(tmp_path: Path, fake_nvidia: Any, name: str) -> None:
    """TensorRT is not asked either: it could only refuse, or not notice."""
    graph = tmp_path / "encoder.onnx"
    graph.write_bytes(GRAPH)
    changes, says = STALE[name]
    add_engine(graph, TENSORRT, **changes)
    with pytest.raises(EngineError, match=f"{says}.*build one with: vos-export engine .* --flavour tensorrt"):
        engine_of(graph)
    assert fake_nvidia.tensorrt.logger is None


def test_an_altered_engine_is_never_loaded(graph: Path, fake_nvidia: Any) -> None:
    path = next((graph.parent / "engines").glob("encoder-tensorrt-10*.engine"))
    path.write_bytes(PLAN.replace(b"32", b"31"))
    with pytest.raises(EngineError, match="was altered: its SHA-256 is not the one in its record"):
        engine_of(graph)
    path.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="was altered: it has"):
        engine_of(graph)
    path.unlink()
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        engine_of(graph)
    elsewhere = graph.with_name("elsewhere")
    elsewhere.write_bytes(PLAN)
    path.symlink_to(elsewhere)
    with pytest.raises(EngineError, match="is reached through a link"):
        engine_of(graph)
    assert fake_nvidia.tensorrt.logger is None


def test_a_plan_that_tensorrt_refuses(graph: Path, fake_nvidia: Any) -> None:
    """Its record agrees with it, but it is no engine."""
    add_engine(graph, TENSORRT, plan=b"nonsense")
    with pytest.raises(
        EngineError, match=r"cannot load encoder-tensorrt-.*malformed plan; build it again: .*--rebuild$"
    ):
        engine_of(graph)


def test_what_is_missing_is_named_with_its_command(
    graph: Path, fake_nvidia: Any, monkeypatch: pytest.MonkeyPatch, plug_in_gpu: Callable[..., None]
) -> None:
    for module, flavour, command in (
        ("cuda.bindings.runtime", TENSORRT, "pip install 'vosrt[tensorrt]'"),
        ("tensorrt", TENSORRT, "pip install 'vosrt[tensorrt]'"),
        ("tensorrt_rtx", TENSORRT_RTX, "pip install 'vosrt[tensorrt-rtx]'"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError) as caught:
                engine_of(graph, flavour)
        assert str(caught.value).endswith(f"is not installed; install it with: {command}")
    fake_nvidia.tensorrt.__version__ = "10.0.1"
    with pytest.raises(
        EngineError, match=r"tensorrt 10\.0\.1 is installed; 10\.1 or newer is needed: pip install --upgrade"
    ):
        engine_of(graph)
    plug_in_gpu()
    with pytest.raises(EngineError, match="the NVIDIA driver offers no GPU"):
        engine_of(graph)


def test_the_fakes_have_only_what_the_real_libraries_have(fake_nvidia: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that NVIDIA's libraries lack fails the test."""
    engine = fake_nvidia.tensorrt_rtx.Runtime(None).deserialize_cuda_engine(PLAN)
    fakes = {
        ("cuda.bindings.runtime", ""): fake_nvidia.cuda,
        ("tensorrt_rtx", ""): fake_nvidia.tensorrt_rtx,
        ("tensorrt_rtx", "ICudaEngine"): engine,
        ("tensorrt_rtx", "IExecutionContext"): engine.create_execution_context(),
    }
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name)
    for (module, attribute), fake in fakes.items():
        real = pytest.importorskip(
            module, reason=f"{module} is not installed; it comes with: pip install 'vosrt[tensorrt-rtx]'"
        )
        names = {name for name, value in inspect.getmembers(fake) if callable(value) and not name.startswith("_")}
        names.discard("submit")  # how the fakes work together
        assert len(names) > 5 or attribute == ""
        assert names <= set(dir(getattr(real, attribute) if attribute else real)), f"{module} {attribute}"
    assert hasattr(sys.modules["tensorrt_rtx"].IRuntimeConfig, "cuda_graph_strategy")
