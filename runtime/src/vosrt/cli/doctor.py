"""``vos-run doctor``: what this installation can use, what it cannot, and the command that changes that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from vosrt.console import Cell, Column, say_json, show, styled, table
from vosrt.errors import MissingExtraError, VosrtError

_REINSTALL = "pip install --force-reinstall --no-deps PATH/TO/vosrt"  # vosrt is installed from a clone
_ISA_NAMES = {
    "generic": "portable C++",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512bf16": "AVX-512 BF16",
    "amx": "AMX BF16",
    "neon": "NEON",
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
    findings = [*_engines(), *_core(), *_cuda_core(), *_codecs(), *_inputs(), *_data()]
    return [*findings, *_next_step(findings)]


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print the table, or one JSON object."""
    if as_json:
        say_json({"findings": [asdict(finding) for finding in findings]})
        return
    rows: list[list[Cell]] = []
    previous = ""
    for finding in findings:
        mark = styled("yes", "green") if finding.found else styled("no", "red" if finding.needed else "yellow")
        kind = "" if finding.kind == previous else finding.kind
        rows.append([styled(kind, "dim"), finding.name, mark, finding.detail, finding.command])
        previous = finding.kind
    heads = ("", "what", "found", "detail", "to add it")
    show(table([Column(head, overflow="fold") for head in heads], rows, gap=2))


def _engines() -> list[Finding]:
    """Every engine that is registered; what was built of a bundle is looked for when the bundle is loaded."""
    from vosrt.engines import registry
    from vosrt.engines.nvidia import find_gpu

    findings = []
    no_gpu: VosrtError | None = None
    try:
        gpu = find_gpu()
        findings.append(Finding("engine", "NVIDIA GPU", True, f"{gpu.name} ({gpu.architecture}), CUDA {gpu.cuda}"))
    except VosrtError as error:
        no_gpu = error
        findings.append(Finding("engine", "NVIDIA GPU", False, error.reason, error.remedy))
    runs = False  # on every machine
    for name in registry.all_names():
        try:
            known = registry.registered(name)
            if no_gpu is not None and "cpu" not in known.devices:
                findings.append(Finding("engine", name, False, "needs an NVIDIA GPU"))
                continue
            what = f"{', '.join(known.devices)}: {', '.join(known.precisions)}; needs {known.needs}"
            findings.append(Finding("engine", name, True, what if known.find is None else known.find()))
            runs |= "cpu" in known.devices
        except VosrtError as error:
            findings.append(Finding("engine", name, False, error.reason, error.remedy))
    return [replace(each, needed=not runs and each.name == registry.fallback("cpu").name) for each in findings]


_NEEDED_CUDA = (13, 0)  # of the packages that the extras name


def _next_step(findings: list[Finding]) -> list[Finding]:
    """What is missing first on the way to frames on the GPU; nothing on a machine without one."""
    from vosrt.engines.nvidia import find_gpu
    from vosrt.engines.tensorrt_flavour import flavour_for

    try:
        gpu = find_gpu()
    except VosrtError:
        return []
    found = {finding.name: finding for finding in findings}
    flavour = flavour_for(gpu.architecture)
    if tuple(map(int, gpu.cuda.split("."))) < _NEEDED_CUDA:
        detail = f"its driver takes CUDA up to {gpu.cuda}, the packages need {'.'.join(map(str, _NEEDED_CUDA))}"
        return [Finding("next", "driver", False, detail, "install the NVIDIA driver 580 or newer")]
    if not found["CUDA"].found:
        return [Finding("next", "libvosrt_cuda", False, found["CUDA"].detail, found["CUDA"].command)]
    if not found["cuda"].found:
        detail = "ONNX Runtime's CUDA provider runs every bundle, and mask networks"
        return [Finding("next", "engine cuda", False, detail, found["cuda"].command)]
    engine = found[flavour.name]
    if not engine.found:
        detail = f"the fastest engine for {gpu.architecture}: {engine.detail}"
        return [Finding("next", f"engine {flavour.name}", False, detail, engine.command)]
    command = f"vos-export engine default --flavour {flavour.option}"
    return [Finding("next", "engine file", True, "build it once, for each bundle that you run", command)]


def _core() -> list[Finding]:
    from vosrt.core import native
    from vosrt.core.memory import create_memory
    from vosrt.types import PropagationOptions

    try:
        native.libvosrt()
        _, chosen = create_memory(1, 1, 1, PropagationOptions())
    except VosrtError as error:
        return [Finding("core", "native", False, error.reason, error.remedy, needed=True)]
    findings = [Finding("core", "native", True, chosen, needed=True)]
    for isa, name in _ISA_NAMES.items():
        available = bool(native.isa_available(isa))
        findings.append(Finding("core", name, available, "" if available else "not on this processor"))
    int8 = native.has_int8_dot_products()
    what = "engines take a bundle's int8 encoder" if int8 else "not on this processor: encoders in float are faster"
    return [*findings, Finding("core", "VNNI", int8, what)]


def _cuda_core() -> list[Finding]:
    from vosrt.cuda import Gpu

    try:
        gpu = Gpu(0).info()
    except VosrtError as error:
        return [Finding("core", "CUDA", False, error.reason, error.remedy)]
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
    for name, encoder in {"VP9": "libvpx-vp9", "AV1": "libsvtav1"}.items():
        found = has(encoder, "w")
        findings.append(
            Finding("codec", f"write {name}", found, encoder if found else "not in this PyAV", "" if found else wheel)
        )
    for codec, files in _DECODERS.items():
        found = has(codec, "r")
        findings.append(Finding("codec", f"read {codec}", found, files, "" if found else wheel))
    return [*findings, _tiff(), _nvdec()]


def _tiff() -> Finding:
    from vosrt.video.tiff import tifffile_version

    try:
        return Finding("codec", "TIFF stacks", True, f"tifffile {tifffile_version()}")
    except MissingExtraError as error:
        return Finding("codec", "TIFF stacks", False, error.reason, error.remedy)


def _nvdec() -> Finding:
    from vosrt.video.nvdec import PACKAGE, check_nvdec, nvdec_version

    try:
        check_nvdec(0)
        version = nvdec_version()
    except VosrtError as error:
        return Finding("codec", "NVDEC", False, error.reason, error.remedy)
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
    from vosrt.bundle import ENCODER_ROLES, load_bundle, packaged_bundles

    findings = []
    for name in packaged_bundles() or ("default",):
        try:
            manifest = load_bundle(name).manifest
            precisions = [manifest.graphs[role].precision for role in ENCODER_ROLES if role in manifest.graphs]
            detail = f"{manifest.name}, {'trained' if manifest.trained else 'untrained'}; {', '.join(precisions)}"
            findings.append(Finding("data", f"model {name!r}", True, detail))
        except VosrtError as error:
            findings.append(Finding("data", f"model {name!r}", False, str(error), _REINSTALL))
    return findings
