"""Everything about the CUDA core on an NVIDIA GPU that is at hand for minutes: one command, eight minutes at most.

    python -m benchmarks.kernels.gpu                   # nothing has to be installed; writes results/gpu.jsonl
    python -m benchmarks.kernels.gpu --engine auto     # with TensorRT or another engine of vos-run's
    python -m benchmarks.kernels.gpu --only parity --only streams
    python -m benchmarks.kernels.gpu --check           # without a GPU: all of it at toy size, on emulated kernels

It says what is there, builds what is missing into a folder of its own, and measures part after part (`gpu_parts.py`):
parity, whole frames in every way, kernels beside their floors, dense PyTorch and torch.compile, many streams,
refinement, Cutie and SAM 2.1 where they are installed, energy where the driver counts it, and compute-sanitizer. Each
part is a process with a time limit: one that fails, crashes or hangs leaves a line that says so. While the library is
built, what does without it is measured. Rows are written as they come, so that an end half-way loses none.

Exit codes: 0; 1 if parity is lost or nothing could be measured, in a check if any part failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "runtime" / "native"
LIBRARY_VARIABLE, EMULATED_VARIABLE = "VOSRT_CUDA_LIBRARY", "VOSRT_CUDA_EMULATED_LIBRARY"
SECONDS = 8 * 60.0
CHECK_SECONDS = 40 * 60.0  # kernels on a busy processor
BUILD_SECONDS = 200.0
Row = dict[str, Any]

NEEDED = ("numpy", "torch", "onnx")  # by distribution; without these hardly a part runs
WELCOME = (
    "onnxruntime",
    "triton",
    "cupy-cuda13x",
    "opencv-python-headless",
    "rf-cutie",
    "sam2",
    "tensorrt",
    "tensorrt-rtx-cu13",
)


@dataclass(frozen=True)
class Part:
    """What is measured in one go.

    Attributes:
        name: of `gpu_parts.PARTS`.
        seconds: after which it is ended.
        needs_library: it cannot run before libvosrt_cuda is built.
        sanitizer: tool of compute-sanitizer that watches it, or none.
    """

    name: str
    seconds: float
    needs_library: bool = True
    sanitizer: str = ""


PARTS = (
    Part("dense PyTorch", 80, needs_library=False),
    Part("Cutie", 40, needs_library=False),
    Part("SAM 2.1", 60, needs_library=False),
    Part("parity", 50),
    Part("networks", 40),
    Part("frames at 480p", 80),
    Part("kernels at 480p", 50),
    Part("streams", 60),
    Part("refined", 60),
    Part("frames at 1080p", 80),
    Part("memcheck", 60, sanitizer="memcheck"),
    Part("kernels at 1080p", 60),
    Part("racecheck", 60, sanitizer="racecheck"),
    Part("synccheck", 60, sanitizer="synccheck"),
)


@dataclass
class Budget:
    """Seconds that are left of the time that everything may take together."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds; not below 0."""
        return max(0.0, self.began + self.seconds - time.monotonic())


def run_part(name: str, command: Sequence[str], rows: Path, seconds: float, environment: dict[str, str]) -> list[Row]:
    """Run a process that appends rows to a file; what it wrote, and why it did not come to its end if it did not.

    Args:
        rows: the file of JSON lines that it writes.
        seconds: after which it and its children are killed.
    """
    rows.unlink(missing_ok=True)
    log = rows.with_suffix(".log")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        why = _wait(process, seconds)
    found: list[Row] = []
    for line in rows.read_text().splitlines() if rows.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the process was killed while it wrote
            break
    if why:
        words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        found.append({"part": name, "what": name, "why_not": f"{why}: {' '.join(words[-2:])[:300]}".removesuffix(": ")})
    return [*found, {"part": name, "what": "part", "seconds": round(time.monotonic() - began, 1)}]


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Why a process did not come to a good end, nothing if it did; it and its children are gone afterwards."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            print(f"process {process.pid} hangs in the driver and is left behind", file=sys.stderr)
    if status == 0:
        return ""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"


def look_around(environment: dict[str, str]) -> Row:
    """What is installed, and what the driver says; nothing is imported."""
    found, missing = {}, []
    for name in (*NEEDED, *WELCOME):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    tools = {
        tool: shutil.which(tool, path=environment["PATH"]) is not None
        for tool in ("nvcc", "cmake", "compute-sanitizer")
    }
    row: Row = {
        "what": "machine",
        "python": sys.version.split()[0],
        "packages": found,
        "missing": missing,
        "tools": tools,
    }
    query = "name,driver_version,compute_cap,memory.total,power.limit,clocks.max.sm"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        row["gpu"] = dict(zip(query.split(","), done.stdout.splitlines()[0].split(", "), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        row["gpu"] = ask_torch(environment)
    return row


def ask_torch(environment: dict[str, str]) -> dict[str, str] | None:
    """Name, compute capability and CUDA of the first GPU as PyTorch sees it: containers may lack nvidia-smi."""
    code = (
        "import torch; p = torch.cuda.get_device_properties(0)\n"
        "print(p.name, f'{p.major}.{p.minor}', torch.version.cuda, sep='\\n')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        name, capability, cuda = done.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return {"name": name, "driver_version": f"of CUDA {cuda} or newer", "compute_cap": capability}


def make_site(folder: Path, library: Path | None) -> Path:
    """Lay out vosrt as if it were installed: links to the sources, libvosrt, and the names of its engines."""
    site = folder / "site"
    (site / "vosrt").mkdir(parents=True, exist_ok=True)
    for each in (ROOT / "runtime" / "src" / "vosrt").iterdir():
        _link(each, site / "vosrt" / each.name)
    if library is not None:
        _link(library, site / "vosrt" / "libvosrt.so")
    for package in ("train/src/vosrt_train", "export/src/vosrt_export"):
        _link(ROOT / package, site / Path(package).name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    record = site / f"vosrt-{project['version']}.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vosrt\nVersion: {project['version']}\n")
    groups = {
        group: "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in project["entry-points"].items()
    }
    (record / "entry_points.txt").write_text("".join(f"[{group}]\n{text}" for group, text in groups.items()))
    return site


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source)


def is_installed(environment: dict[str, str]) -> bool:
    """Whether this interpreter has vosrt with its native core."""
    code = "from vosrt.core import native; native.libvosrt()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=False)
    return done.returncode == 0


def build_command(folder: Path, targets: Sequence[str], capability: str) -> list[str]:
    """A shell command that configures and builds the native targets for this GPU."""
    options = (
        ["-DVOSRT_CUDA_EMULATED=ON", "-DVOSRT_CUDA=OFF"] if "vosrt_cuda_emulated" in targets else ["-DVOSRT_CUDA=ON"]
    )
    if capability:
        options.append(f"-DVOSRT_CUDA_ARCHITECTURES={capability.replace('.', '')}-real")
    configure = ["cmake", "-S", str(NATIVE), "-B", str(folder), *options]
    build = ["cmake", "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0))), "--target", *targets]
    quoted = [" ".join(f"'{word}'" for word in command) for command in (configure, build)]
    return ["sh", "-c", " && ".join(quoted)]


class Run:
    """The parts one after the other, their rows in a file.

    Args:
        folder: for what is built and written on the way.
        settings: of `gpu_parts.Settings`.
    """

    def __init__(
        self, file: TextIO, folder: Path, budget: Budget, environment: dict[str, str], settings: dict[str, Any]
    ) -> None:
        self._file, self._folder, self._budget = file, folder, budget
        self._environment, self._settings = environment, settings
        self.rows: list[Row] = []

    def add(self, *rows: Row) -> None:
        """Write rows and show them."""
        for row in rows:
            self.rows.append(row)
            print(json.dumps(row), file=self._file, flush=True)
            words = (
                f"{name}: {value}" if name != "what" else str(value) for name, value in row.items() if name != "part"
            )
            print(f"[{self._budget.left():3.0f} s left] " + " | ".join(words), flush=True)

    def measure(self, part: Part) -> None:
        """Run a part in what is left of the time."""
        seconds = min(part.seconds, self._budget.left() - 2)
        if seconds < 5:
            self.add({"part": part.name, "what": part.name, "why_not": "no time was left for it"})
            return
        command = [sys.executable, "-m", "benchmarks.kernels.gpu_parts", part.name]
        rows = self._folder / f"{part.name.replace(' ', '-')}.jsonl"
        command += [str(rows), json.dumps(self._settings)]
        if part.sanitizer:
            tool = shutil.which("compute-sanitizer", path=self._environment["PATH"])
            if tool is None:
                self.add({"part": part.name, "what": part.name, "why_not": "compute-sanitizer is not installed"})
                return
            command = [tool, "--tool", part.sanitizer, "--error-exitcode", "9", *command]
        self.add(*run_part(part.name, command, rows, seconds, self._environment))

    def build(self, targets: Sequence[str], capability: str, meanwhile: Sequence[Part]) -> list[Part]:
        """Build, and measure parts that need nothing built meanwhile.

        Returns:
            The parts that were not come to.

        Raises:
            BuildError: it failed.
        """
        began, log = time.monotonic(), self._folder / "build.log"
        command = build_command(self._folder / "native", targets, capability)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )
            waiting = list(meanwhile)
            try:
                while waiting and process.poll() is None:
                    self.measure(waiting.pop(0))
            finally:
                why = _wait(process, max(1.0, min(BUILD_SECONDS - (time.monotonic() - began), self._budget.left() - 2)))
        if why:
            words = [line for line in log.read_text(errors="replace").splitlines() if "rror" in line] or [why]
            raise BuildError(f"{why}: {' '.join(words[:3])[:400]}")
        self.add({"part": "build", "what": "part", "seconds": round(time.monotonic() - began, 1)})
        return waiting


class BuildError(Exception):
    """The library cannot be built."""


def measure(run: Run, environment: dict[str, str], parts: Sequence[Part], *, check: bool, capability: str) -> None:
    """Build what is missing, and measure all parts."""
    libraries = [] if environment.get(LIBRARY_VARIABLE) else ["vosrt_cuda_emulated" if check else "vosrt_cuda"]
    installed = is_installed(environment)
    targets = [*libraries, *([] if installed else ["vosrt"])]
    alone = [part for part in parts if not part.needs_library]
    if not installed:
        site = make_site(run._folder, run._folder / "native" / "libvosrt.so")
        environment["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT)])
    try:
        if targets:
            alone = run.build(targets, capability, [] if check else alone)
        if libraries:
            environment[LIBRARY_VARIABLE] = str(run._folder / "native" / "cuda" / f"lib{libraries[0]}.so")
    except BuildError as error:
        run.add({"part": "build", "what": "build", "why_not": str(error)})
        parts = alone
    for part in parts:
        if part.needs_library or part in alone:
            run.measure(part)


def main() -> None:
    """Parse options, look around, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="toy sizes on emulated kernels; no GPU needed")
    parser.add_argument("--engine", default="torch", help="torch, or as for vos-run")
    parser.add_argument(
        "--only", action="append", metavar="PART", help=f"one of {', '.join(p.name for p in PARTS)}; again for more"
    )
    parser.add_argument("--seconds", type=float, help="that everything may take together, by default 480")
    parser.add_argument("-o", "--output", type=Path, help="file of JSON lines, by default benchmarks/results/gpu.jsonl")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - {part.name for part in PARTS}:
        parser.error(f"no part {', '.join(map(repr, sorted(unknown)))}; expected {', '.join(p.name for p in PARTS)}")
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    if options.check:  # at toy size the two sizes are one
        parts = [replace(part, seconds=CHECK_SECONDS / 4) for part in parts if not part.name.endswith("1080p")]
    environment = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    if options.check and environment.get(EMULATED_VARIABLE):
        environment[LIBRARY_VARIABLE] = environment[EMULATED_VARIABLE]
    around = look_around(environment)
    if lacking := [name for name in NEEDED if name in around["missing"]]:
        print(f"not installed: {', '.join(lacking)}; what needs them will say so", file=sys.stderr)
    if around["gpu"] is None and not options.check:
        print("error: nvidia-smi names no GPU; --check runs everything on emulated kernels", file=sys.stderr)
        raise SystemExit(2)
    folder = Path(tempfile.mkdtemp(prefix="vosrt-gpu-"))
    output = options.output or (folder if options.check else ROOT / "benchmarks" / "results") / "gpu.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    capability = "" if options.check or not around["gpu"] else around["gpu"]["compute_cap"]
    settings = {"toy": options.check, "engine": options.engine}
    try:
        with output.open("w") as file:
            run = Run(
                file,
                folder,
                Budget(options.seconds or (CHECK_SECONDS if options.check else SECONDS)),
                environment,
                settings,
            )
            print(json.dumps({"machine": describe(), **around}), file=file, flush=True)
            print(" | ".join(f"{name}: {value}" for name, value in around.items()))
            measure(run, environment, parts, check=options.check, capability=capability)
        show_tables(output, environment)
        print(f"{len(run.rows)} rows in {output}" if output.parent != folder else "nothing is kept of a check")
        raise SystemExit(verdict(run.rows, check=options.check))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verdict(rows: Sequence[Row], *, check: bool) -> int:
    """Exit code: 1 if parity is lost or nothing was measured; in a check, also if anything but a peer is missing."""
    why_not = [row["why_not"] for row in rows if "why_not" in row]
    failed = [why for why in why_not if not why.startswith("ModuleNotFoundError") and "is not installed" not in why]
    lost = any(why.startswith("LostParityError") for why in why_not)
    measured = any(name in row for row in rows for name in ("fps", "ms", "labels_changed"))
    return int(lost or not measured or (check and bool(failed)))


def describe() -> Row:
    """The machine as the other benchmarks have it, if vosrt can be imported from here."""
    try:
        from benchmarks.machine import describe as describe_machine
    except ImportError:
        return {}
    return describe_machine()


def show_tables(results: Path, environment: dict[str, str]) -> None:
    """Print what `benchmarks.report` makes of the rows, where vosrt was built if it is not installed."""
    code = "import sys, pathlib; from benchmarks.report.gpu import tables; print(tables(pathlib.Path(sys.argv[1])))"
    subprocess.run([sys.executable, "-c", code, str(results.absolute())], env=environment, cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
