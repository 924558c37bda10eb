"""No command talks to a network or writes outside its output: the system calls of whole processes are watched.

They run under strace, with a home folder of their own, in a network namespace whose only neighbour is a name server
that never answers. What asks for a name or an analytics service shows as a socket of the internet families and as a
packet that the server got, and waits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vosrt.bundle import load_bundle

_INTERNET = re.compile(r"\b(?:socket\(AF_INET6?\b|connect\(.*sin6?_port|sendto\(.*sin6?_port)")
_WRITES = re.compile(
    r'\b(?:openat\([^"]*"([^"]+)", [^)]*O_CREAT|open\("([^"]+)", [^)]*O_CREAT|mkdir(?:at\([^"]*|\()"([^"]+)")'
)
_HARMLESS = ("/dev/", "/proc/", f"{tempfile.gettempdir()}/", "/sys/")

# Runs a command where every name is asked for at a server that keeps silent; fails if it was asked.
_SILENT_SERVER = """
import fcntl, socket, struct, subprocess, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(server, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
server.bind(("127.0.0.1", 53))
server.setblocking(False)
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
code = subprocess.run(sys.argv[2:]).returncode
try:
    sys.exit(f"the name server was asked: {server.recv(4096)!r}")
except BlockingIOError:
    sys.exit(code)
"""

Watched = Callable[..., None]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Runs a program and fails where it opened a socket to the internet, or wrote anywhere but into its output."""
    strace, unshare = shutil.which("strace"), shutil.which("unshare")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    silent = [sys.executable, "-c", _SILENT_SERVER, str(tmp_path / "resolv.conf")]
    ways = [[unshare, "-rnm", *silent], [unshare, "-rn"]] if unshare else []

    def works(way: list[str]) -> bool:
        probe = [*way, str(strace), "-f", "--seccomp-bpf", "-o", os.devnull, "true"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    alone = next((way for way in [*ways, []] if strace and works(way)), None)
    if strace is None or alone is None:
        pytest.skip("strace does not work here")
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()

    def run(*command: str) -> None:
        log = tmp_path / "calls"
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("XDG_", "ORT_", "CI", "TF_BUILD", "VOSRT_CACHE"))
        }
        environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path / "scratch")}
        (tmp_path / "scratch").mkdir(exist_ok=True)
        calls = "trace=socket,connect,sendto,open,openat,mkdir,mkdirat"
        done = subprocess.run(
            [*alone, strace, "-f", "--seccomp-bpf", "-qq", "-s", "300", "-e", calls, "-o", str(log), *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=out,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        lines = log.read_text(errors="replace").splitlines()
        assert [line for line in lines if _INTERNET.search(line)] == []
        written = {next(filter(None, found.groups())) for line in lines if (found := _WRITES.search(line))}
        absolute = {path for path in written if path.startswith("/")} - {str(home / ".cache")}  # the cache lies there
        allowed = (str(out), str(tmp_path / "scratch"), str(home / ".cache" / "vosrt"))
        assert {each for each in absolute if not each.startswith((*allowed, *_HARMLESS))} == set()
        assert {each for each in absolute if each.startswith(str(home)) and not each.startswith(allowed)} == set()
        assert [
            each for each in home.rglob("*") if each.is_file() and home / ".cache" / "vosrt" not in each.parents
        ] == []

    return run


def program(package: str, *arguments: str, interrupt_s: float = 60) -> list[str]:
    """A command of ours that stays for as long as ONNX Runtime waits before it reports; a long one is interrupted."""
    module = {"vosrt": "vosrt.cli.run"}.get(package, package if package.endswith("eval") else f"{package}.cli")
    code = (
        "import os, signal, sys, threading, time\n"
        f"timer = threading.Timer({interrupt_s}, os.kill, (os.getpid(), signal.SIGINT))\n"
        "timer.daemon = True; timer.start()\n"
        f"sys.argv = {['program', *arguments]!r}\n"
        f"from {module} import main\n"
        "try: code = main()\n"
        "except SystemExit as error: code = error.code\n"
        "timer.cancel(); time.sleep(4); sys.exit(0 if code == 130 else code)"
    )
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_running_is_silent(engine: str, clip: Path, watched: Watched, skip_or_fail: Callable[..., None]) -> None:
    """`vos-run` runs on both libraries that could report."""
    try:
        __import__("onnxruntime" if engine == "cpu" else "openvino")
    except ImportError:
        skip_or_fail(f"no {engine}", required=engine)
    watched(*program("vosrt", str(clip), "--mask", str(clip.parent / "mask.png"), "-o", "result", "--engine", engine))


def test_the_demo_is_silent(watched: Watched) -> None:
    watched(*program("vosrt", "demo", "-o", "demo", "--quiet", "--threads", "2", interrupt_s=5))


def test_the_doctor_is_silent(watched: Watched) -> None:
    """It imports every engine."""
    watched(*program("vosrt", "doctor"))


def test_exporting_is_silent(clip: Path, watched: Watched) -> None:
    """`vos-export` uses PyTorch, ONNX and ONNX Runtime on a checkpoint."""
    pytest.importorskip("torch")
    from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
    from vosrt_train.config import EncoderConfig
    from vosrt_train.model import build_encoder

    network = build_encoder(EncoderConfig(width=8, key_channels=16), seed=0).eval()
    save_checkpoint(
        Checkpoint(network, Training(trained=True, seed=0, summary="of a test", licence="CC0-1.0")),
        clip.parent / "net.safetensors",
    )
    watched(*program("vosrt_export", str(clip.parent / "net.safetensors"), "-o", "bundle"))


def test_verifying_is_silent(clip: Path, watched: Watched) -> None:
    """`vos-export` imports PyTorch, ONNX and both engines."""
    pytest.importorskip("torch")
    bundle = shutil.copytree(load_bundle("default").path, clip.parent / "out" / "bundle")
    watched(
        *program(
            "vosrt_export",
            "verify",
            str(bundle),
            "--engine",
            "openvino",
            "--size",
            "48",
            "--threads",
            "1",
            "--no-write",
        )
    )


def test_evaluating_is_silent(clip: Path, watched: Watched) -> None:
    """`vos-eval` runs on a data set of one sequence."""
    data = clip.parent / "davis"
    for folder in ("JPEGImages/480p", "Annotations/480p", "ImageSets/2017"):
        (data / folder).mkdir(parents=True)
    (data / "ImageSets/2017/val.txt").write_text("one\n")
    for kind in ("JPEGImages", "Annotations"):
        (data / kind / "480p" / "one").mkdir()
    for index, frame in enumerate(sorted(clip.iterdir())):
        Image.open(frame).save(data / f"JPEGImages/480p/one/{index:05}.jpg")
        shutil.copy(clip.parent / "mask.png", data / f"Annotations/480p/one/{index:05}.png")
    watched(*program("vosrt.cli.eval", "run", str(data), "--dataset", "davis17", "-o", "scores", "--quiet"))


def test_training_is_silent(clip: Path, watched: Watched) -> None:
    """`vos-train` takes one step and writes its TensorBoard files."""
    pytest.importorskip("torch")
    settings = ["encoder.width=8", "cache.short_side=48", "clips.batch=2", "clips.frames=2", "clips.crop=48"]
    settings += ["clips.gap=1", "clips.workers=0", "loss.points=2", "loss.anchors=4"]
    settings += ["schedule.steps=1", "schedule.warmup=1", "validation.sequences=[]"]
    changes = [word for each in settings for word in ("--set", each)]
    watched(*program("vosrt_train", str(clip.parent / "clip"), "-o", "run", "--preset", "cpu-2h", "--quiet", *changes))


def test_the_example_in_c_is_silent(clip: Path, watched: Watched) -> None:
    """`vos_embed` runs on every engine that it was built with."""
    programs = [os.environ.get(name) for name in ("VOSRT_VOS_EMBED", "VOSRT_VOS_EMBED_ONNXRUNTIME")]
    if not any(programs):
        pytest.skip("VOSRT_VOS_EMBED names no example")
    for example in filter(None, programs):
        watched(
            example,
            str(load_bundle("fast").path),
            str(clip),
            str(clip.parent / "mask.png"),
            f"out-{Path(example).name}",
        )
