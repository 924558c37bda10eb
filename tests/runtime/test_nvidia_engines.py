"""Engines for NVIDIA GPUs on machines that have one, or half of what it takes: what runs, what is refused and why."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vosrt import Model
from vosrt.bundle import EncoderSpec
from vosrt.cli import doctor
from vosrt.cli.run import main as vos_run
from vosrt.engines import nvidia, nvidia_providers
from vosrt.engines import onnxruntime as ort_engines
from vosrt.engines.base import EngineInfo
from vosrt.engines.mask_axes import MASK_AXES
from vosrt.engines.nvidia import Gpu, find_gpu
from vosrt.engines.nvidia_providers import cache_folder, find_tensorrt_rtx_device
from vosrt.engines.select import create_encoder_engine, create_mask_engine
from vosrt.errors import EngineError, MissingExtraError, OptionError, VosrtError
from vosrt.model import choose_device

SPEC = EncoderSpec(channels=3, feature="res4")
NVIDIA_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx", "cuda")
CARD = ("NVIDIA GeForce RTX 4090", 8, 9)


def test_the_driver_is_asked(plug_in_gpu: Callable[..., None]) -> None:
    plug_in_gpu(CARD, ("another", 12, 0))
    assert find_gpu() == Gpu("NVIDIA GeForce RTX 4090", "sm_89", "13.1")
    plug_in_gpu(("NVIDIA RTX PRO 6000", 12, 0))
    assert find_gpu().architecture == "sm_120"
    plug_in_gpu()
    with pytest.raises(EngineError, match="offers no GPU"):
        find_gpu()
    plug_in_gpu(CARD, init_status=999)
    with pytest.raises(EngineError, match="cuInit returned 999"):
        find_gpu()


@pytest.mark.parametrize("engine", NVIDIA_ENGINES)
@pytest.mark.parametrize("unusable", [None, 999])
def test_an_engine_without_its_gpu_is_a_wrong_option(
    plug_in_gpu: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Path,
    tmp_path: Path,
    engine: str,
    unusable: int | None,
) -> None:
    """One line and exit code 2, whether the driver is missing or cannot be used."""
    if unusable is None:
        monkeypatch.setattr(nvidia, "_DRIVER", "libvosrt-no-such-driver.so")
    else:
        plug_in_gpu(CARD, init_status=unusable)
    words = f"--box 4,4,16,16 --end 1 --no-video --engine {engine} -o {tmp_path / 'out'}".split()
    assert vos_run([str(clip), *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    unusable_words = "the NVIDIA driver cannot be used: cuInit returned 999"
    assert re.match(f"error: (no NVIDIA driver here|{unusable_words}|.* is not installed)", error[0])


def test_no_driver_is_one_reason_for_all(encoder_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure: other engines run."""
    monkeypatch.setattr(nvidia, "_DRIVER", "libvosrt-no-such-driver.so")
    info = create_encoder_engine(encoder_graph, SPEC).info
    assert f"{', '.join(NVIDIA_ENGINES)} refused: no NVIDIA driver here (libvosrt-no-such-driver.so" in info.reason
    for name in NVIDIA_ENGINES:
        with pytest.raises(VosrtError, match=r"no NVIDIA driver here|is not installed"):
            create_encoder_engine(encoder_graph, SPEC, engine=name)


class FakeOnnxRuntime(ModuleType):
    """An ONNX Runtime with providers that compute on the real CPU provider; it may pass one over, as the real one."""

    def __init__(self, *providers: str, broken: tuple[str, ...] = ()) -> None:
        super().__init__("onnxruntime")
        self._real: Any = importlib.import_module("onnxruntime")
        self.__version__ = "1.31.1"
        self.SessionOptions = self._real.SessionOptions
        self._providers, self._broken = providers, broken
        self.sessions: list[list[tuple[str, dict[str, str]]]] = []

    def get_available_providers(self) -> list[str]:
        return [*self._providers, "CPUExecutionProvider"]

    def InferenceSession(  # noqa: N802
        self, graph: Path, options: Any, providers: list[tuple[str, dict[str, str]]], *, enable_fallback: int = 1
    ) -> Any:
        if enable_fallback:
            print("*************** EP Error ***************")
        self.sessions.append(providers)
        real = self._real.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        loaded = [name for name, _ in providers if name not in self._broken]
        return SimpleNamespace(
            get_providers=lambda: [*loaded, "CPUExecutionProvider"], get_outputs=real.get_outputs, run=real.run
        )


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[FakeOnnxRuntime], FakeOnnxRuntime]:
    """Makes an ONNX Runtime the installed one, without TensorRT and plugins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("tensorrt", "tensorrt_rtx", "onnxruntime_ep_nv_tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)

    def install(fake: FakeOnnxRuntime) -> FakeOnnxRuntime:
        monkeypatch.setattr(ort_engines, "load_onnxruntime", lambda: fake)
        monkeypatch.setattr(nvidia_providers, "load_onnxruntime", lambda: fake)
        return fake

    return install


@pytest.mark.parametrize(
    ("name", "precision", "says", "options"),
    [
        ("cuda", "auto", "tf32", {"use_tf32": "1"}),
        ("cuda", "fp32", "fp32", {"use_tf32": "0"}),
        ("onnxruntime-tensorrt", "auto", "fp16", {"trt_fp16_enable": "1", "trt_engine_cache_enable": "1"}),
        ("onnxruntime-tensorrt", "fp32", "fp32", {"trt_fp16_enable": "0", "trt_timing_cache_enable": "1"}),
    ],
)
def test_built_in_providers_are_given_the_precision(
    encoder_graph: Path,
    plug_in_gpu: Callable[..., None],
    use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime],
    mean_colours: Callable[..., Any],
    name: str,
    precision: Any,
    says: str,
    options: dict[str, str],
) -> None:
    """The description says which it is."""
    plug_in_gpu(CARD)
    fake = use(FakeOnnxRuntime("TensorrtExecutionProvider", "CUDAExecutionProvider"))
    engine = create_encoder_engine(encoder_graph, SPEC, engine=name, precision=precision)
    assert (engine.info.name, engine.info.precision) == (name, says)
    assert engine.info.version == "onnxruntime 1.31.1, CUDA 13.1, NVIDIA GeForce RTX 4090 (sm_89)"
    provider, given = fake.sessions[-1][0]
    assert provider.lower().startswith(name.removeprefix("onnxruntime-"))
    assert options.items() <= given.items()
    frames = np.random.default_rng(0).integers(1, 256, (1, 16, 24, 3), dtype=np.uint8)
    np.testing.assert_allclose(engine.run({"frames": frames})["embedding"], mean_colours(frames), atol=1e-5)
    with pytest.raises(
        OptionError,
        match=f"^the {name} engine has no bf16; expected auto, .*, or engine tensorrt",
    ):
        create_encoder_engine(encoder_graph, SPEC, engine=name, precision="bf16")


def test_a_provider_that_is_passed_over_is_an_error(
    encoder_graph: Path,
    plug_in_gpu: Callable[..., None],
    use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ONNX Runtime would run on the CPU and say so in its log only."""
    plug_in_gpu(CARD)
    use(FakeOnnxRuntime("CUDAExecutionProvider", broken=("CUDAExecutionProvider",)))
    with pytest.raises(EngineError, match="CUDAExecutionProvider was passed over for CPUExecutionProvider"):
        create_encoder_engine(encoder_graph, SPEC, engine="cuda")
    assert not capsys.readouterr().out  # ONNX Runtime's own fallback would print a banner


def test_auto_goes_down_the_order_and_says_why(
    encoder_graph: Path, plug_in_gpu: Callable[..., None], use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime]
) -> None:
    plug_in_gpu(CARD)
    use(FakeOnnxRuntime("CUDAExecutionProvider"))
    info = create_encoder_engine(encoder_graph, SPEC).info
    assert info.name == "cuda"
    for reason in (
        "tensorrt refused: TensorRT is not installed; install it with: pip install 'vosrt[tensorrt]'",
        "tensorrt-rtx refused: TensorRT-RTX is not installed",
        "onnxruntime-tensorrt refused: onnxruntime 1.31.1 has no TensorrtExecutionProvider; replace it",
        "onnxruntime-tensorrt-rtx refused: ",
    ):
        assert reason in info.reason
    use(FakeOnnxRuntime("TensorrtExecutionProvider", "CUDAExecutionProvider"))
    assert create_encoder_engine(encoder_graph, SPEC).info.name == "onnxruntime-tensorrt"
    assert create_encoder_engine(encoder_graph, SPEC, precision="fp32").info.precision == "fp32"


def test_an_onnxruntime_without_the_provider_names_the_command(
    encoder_graph: Path, plug_in_gpu: Callable[..., None], use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime]
) -> None:
    plug_in_gpu(CARD)
    use(FakeOnnxRuntime())
    for name in ("cuda", "onnxruntime-tensorrt"):
        with pytest.raises(OptionError, match=r"pip uninstall --yes onnxruntime && pip install 'vosrt\[gpu\]'"):
            create_encoder_engine(encoder_graph, SPEC, engine=name)
    with pytest.raises(EngineError) as caught:
        nvidia_providers._version_with("CUDAExecutionProvider")
    assert caught.value.reason == "onnxruntime 1.31.1 has no CUDAExecutionProvider"
    assert caught.value.remedy == "pip uninstall --yes onnxruntime && pip install 'vosrt[gpu]'"


def test_mask_networks_follow_the_encoder_to_the_gpu(
    encoder_graph: Path, plug_in_gpu: Callable[..., None], use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime]
) -> None:
    """The CUDA provider runs them beside any encoder; or the processor does, and the reason says why."""
    plug_in_gpu(CARD)
    fake = use(FakeOnnxRuntime("CUDAExecutionProvider"))
    for name, precision, says in (("tensorrt", "fp16", "tf32"), ("onnxruntime-tensorrt", "fp32", "fp32")):
        encoder = EngineInfo(name, precision, "", "")
        for role in MASK_AXES:
            info = create_mask_engine(encoder_graph, role, encoder).info
            assert (info.name, info.precision) == ("cuda", says)
            assert info.reason.startswith(f"the encoder runs on {name}")
            assert ("tensorrt refused: TensorRT is not installed" in info.reason) == (name == "tensorrt")
    assert [provider for ((provider, _),) in fake.sessions] == ["CUDAExecutionProvider"] * 4
    for refused in (FakeOnnxRuntime(), FakeOnnxRuntime("CUDAExecutionProvider", broken=("CUDAExecutionProvider",))):
        use(refused)
        info = create_mask_engine(encoder_graph, "decoder", encoder).info
        assert info.name == "cpu"
        assert re.match(rf"the encoder runs on {name}; cuda refused: .*(has no|was passed over)", info.reason)
    assert create_mask_engine(encoder_graph, "decoder", EngineInfo("fake", "fp32", "", "")).info.name == "cpu"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, plug_in_gpu: Callable[..., None]) -> Callable[..., Any]:
    """Installs the TensorRT-RTX plugin: ``plugin(offers=True)`` is the ONNX Runtime that registers it."""

    def install(*, offers: bool) -> Any:
        plug_in_gpu(CARD)
        module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__dict__.update(
            __version__="0.5.0",
            get_ep_name=lambda: "NvTensorRTRTXExecutionProvider",
            get_library_path=lambda: "plugin.so",
        )
        monkeypatch.setitem(sys.modules, module.__name__, module)
        registered: list[str] = []

        def register(name: str, path: str) -> None:
            if name in registered:
                raise RuntimeError(f"EP library is already registered under {name}")
            registered.append(name)

        cpu, rtx = (SimpleNamespace(ep_name=f"{name}ExecutionProvider") for name in ("CPU", "NvTensorRTRTX"))
        fake = SimpleNamespace(
            __version__="1.31.1",
            register_execution_provider_library=register,
            get_ep_devices=lambda: [cpu, rtx] if registered and offers else [cpu],
            registered=registered,
        )
        monkeypatch.setattr(nvidia_providers, "load_onnxruntime", lambda: fake)
        return fake

    return install


def test_the_rtx_plugin_is_registered_once(plugin: Callable[..., Any]) -> None:
    fake = plugin(offers=True)
    for _ in range(2):
        device, version, gpu = find_tensorrt_rtx_device()
        assert device.ep_name == "NvTensorRTRTXExecutionProvider"
        assert (version, gpu.architecture) == ("onnxruntime-ep-nv-tensorrt-rtx 0.5.0", "sm_89")
    assert len(fake.registered) == 1


def test_an_rtx_plugin_without_a_device_says_which_gpu_it_refuses(plugin: Callable[..., Any]) -> None:
    plugin(offers=False)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"0\.5\.0 offers no device for NVIDIA GeForce RTX 4090 \(sm_89\)"):
            find_tensorrt_rtx_device()


def test_a_precision_that_the_rtx_plugin_cannot_promise(encoder_graph: Path) -> None:
    for precision in ("fp32", "bf16"):
        with pytest.raises(OptionError, match=f"has no {precision}; expected auto, or engine tensorrt"):
            create_encoder_engine(encoder_graph, SPEC, engine="onnxruntime-tensorrt-rtx", precision=precision)


def test_a_missing_rtx_plugin_names_the_command(
    monkeypatch: pytest.MonkeyPatch, plug_in_gpu: Callable[..., None]
) -> None:
    plug_in_gpu(CARD)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vosrt\[onnxruntime-tensorrt-rtx\]'"):
        find_tensorrt_rtx_device()


def test_caches_are_kept_per_key_and_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOSRT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = tmp_path / "encoder.onnx"
    folders = set()
    for content in (b"one", b"another"):
        graph.write_bytes(content)
        folders |= {cache_folder(key, graph) for key in ("a", "b")}
    assert len(folders) == 4
    assert all(folder.is_dir() and folder.is_relative_to(tmp_path / "cache") for folder in folders)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="set VOSRT_CACHE to a writable folder"):
        cache_folder("a", graph)


def test_the_doctor_lists_every_engine(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fake_nvidia: Any,
    use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime],
) -> None:
    """Each line says whether it was found, or why not, and the command."""
    use(FakeOnnxRuntime("CUDAExecutionProvider"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_nvidia.tensorrt_rtx)
    doctor.print_findings(doctor.examine(), as_json=True)
    findings = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["NVIDIA GPU"]["detail"] == "NVIDIA GeForce RTX 3060 (sm_86), CUDA 13.1"
    assert [findings[name]["found"] for name in NVIDIA_ENGINES] == [False, True, False, False, True]
    assert findings["tensorrt"]["command"] == "pip install 'vosrt[tensorrt]'"
    assert findings["onnxruntime-tensorrt"]["command"] == "pip uninstall --yes onnxruntime && pip install 'vosrt[gpu]'"
    assert findings["onnxruntime-tensorrt-rtx"]["command"] == "pip install 'vosrt[onnxruntime-tensorrt-rtx]'"


def test_the_doctor_names_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
    plug_in_gpu: Callable[..., None],
    fake_nvidia: Any,
    use: Callable[[FakeOnnxRuntime], FakeOnnxRuntime],
) -> None:
    """Driver, library, engines, engine file: the first that is missing, by the kind of the GPU; none without one."""

    def step() -> tuple[str, str]:
        (finding,) = [finding for finding in doctor.examine() if finding.kind == "next"]
        return finding.name, finding.command

    plug_in_gpu(("NVIDIA GeForce RTX 3060", 8, 6), cuda=12080)
    assert step() == ("driver", "install the NVIDIA driver 580 or newer")
    plug_in_gpu(("NVIDIA GeForce RTX 3060", 8, 6))
    monkeypatch.setenv("VOSRT_CUDA_LIBRARY", "/nowhere")
    assert step()[0] == "libvosrt_cuda"
    monkeypatch.setattr(doctor, "_cuda_core", lambda: [doctor.Finding("core", "CUDA", True, "")])
    use(FakeOnnxRuntime())
    assert step() == ("engine cuda", "pip uninstall --yes onnxruntime && pip install 'vosrt[gpu]'")
    use(FakeOnnxRuntime("CUDAExecutionProvider"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert step() == ("engine tensorrt-rtx", "pip install 'vosrt[tensorrt-rtx]'")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_nvidia.tensorrt_rtx)
    assert step() == ("engine file", "vos-export engine default --flavour rtx")
    plug_in_gpu(("NVIDIA H200", 9, 0))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert step() == ("engine tensorrt", "pip install 'vosrt[tensorrt]'")
    plug_in_gpu()
    assert not [finding for finding in doctor.examine() if finding.kind == "next"]


def test_the_doctor_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_DRIVER", "libvosrt-no-such-driver.so")
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["NVIDIA GPU"].command == "install the driver of your GPU"
    for name in NVIDIA_ENGINES:
        assert (findings[name].found, findings[name].detail) == (False, "needs an NVIDIA GPU")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"engine": "cpu"}, "the engine cpu runs on the processor"),
        ({"isolated": True}, "isolated networks run on the processor"),
        ({"precision": "fp32"}, "a GPU matches in bf16, and fp32 was asked for"),
        ({"engine": "fake"}, "the engine fake runs on the processor"),
    ],
    ids=lambda value: str(value),
)
def test_auto_leaves_what_needs_the_processor_there(asked: dict[str, Any], why: str, cuda_emulated: Path) -> None:
    """A GPU that works is not taken where the request cannot be kept on it."""
    request: dict[str, Any] = {"engine": "auto", "precision": "auto", "isolated": False} | asked
    assert choose_device("auto", **request) == ("cpu", why)
    assert choose_device("cuda:1", **request) == ("cuda:1", "")  # what is named is never changed


def test_auto_takes_a_gpu_that_works(
    cuda_emulated: Path,
    monkeypatch: pytest.MonkeyPatch,
    plug_in_gpu: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where one is plugged in and cannot be used, one line says why; without one, the description alone does."""
    request: dict[str, Any] = {"engine": "auto", "precision": "auto", "isolated": False}
    assert choose_device("auto", **request) == ("cuda", "")
    monkeypatch.setenv("VOSRT_CUDA_LIBRARY", "/nowhere")
    plug_in_gpu(CARD)
    why = "/nowhere is not there: this vosrt was built without CUDA"
    assert choose_device("auto", **request) == ("cpu", why)
    assert caplog.messages == [f"the NVIDIA GPU is not used: {why}; vos-run doctor says what to install"]
    caplog.clear()
    plug_in_gpu()
    assert (
        Model.load("default", device="auto", engine="cpu")
        .describe()["core"]
        .endswith("; on no GPU: the engine cpu runs on the processor")
    )
    assert choose_device("auto", **request) == ("cpu", why)
    assert caplog.messages == []
