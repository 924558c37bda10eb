"""Attack the commands as the world does: kills, full disks, twins, signals, threads, hostile files, telemetry.

    python -m benchmarks.attack                # everything, about ten minutes on two cores
    python -m benchmarks.attack kills signals  # some of it; the other results stay as they are

Prints a table of attack / tried / survived, and writes it to results/attack.jsonl. ``before`` is what an earlier attack
on commit 36ac684 found, where it was counted. An attack is survived if the command ends by itself with a documented
exit code and at most one line of error, no file of the user is lost, and no file has its final name before it is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.machine import RESULTS, write
from tests.fakes.bundles import write_bundle
from tests.fakes.media import write_video
from tests.hostile_bundles.test_hostile_operators import CHANNELS, HOSTILE
from vosrt.types import U8Array

WIDTH, HEIGHT, FRAMES = 160, 120, 150
TIMEOUT_S = 300
PROGRAMS = {
    "vos-run": "vosrt.cli.run",
    "vos-eval": "vosrt.cli.eval",
    "vos-train": "vosrt_train.cli",
    "vos-export": "vosrt_export.cli",
}


@dataclass
class Row:
    """One line of the table; `faults` says how what was not survived ended."""

    attack: str
    before: str = ""
    tried: int = 0
    survived: int = 0
    faults: list[str] = field(default_factory=list)

    def count(self, fault: str | None) -> None:
        """Count one attempt; None is survived."""
        self.tried += 1
        self.survived += fault is None
        if fault is not None:
            self.faults.append(fault)


class Field:
    """A clip, its mask and a folder to work in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clip, self.mask = root / "clip.mp4", root / "mask.png"
        noise = np.random.default_rng(7).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)

        def picture(t: int) -> U8Array:
            drawn = noise.copy()
            drawn[40:80, 10 + t // 2 : 50 + t // 2] = (20, 220, 240)
            return drawn

        write_video(self.clip, map(picture, range(FRAMES)), rate=25)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[40:80, 10:50] = 255
        Image.fromarray(mask).save(self.mask)

    def folder(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def run(self, out: Path | str, *more: str) -> list[str]:
        """The arguments of an ordinary run."""
        return [str(self.clip), "--mask", str(self.mask), *_MODEL, "-o", str(out), *more]


_MODEL = ["--bundle", "fast", "--size", "96", "--threads", "1"]


def start(arguments: list[str], program: str = "vos-run", **options: Any) -> subprocess.Popen[str]:
    """Start a command in a new process."""
    code = f"import sys; from {PROGRAMS[program]} import main; sys.exit(main())"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, errors="replace", **pipes)


def first_mask(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until a run has written its first mask, or has ended."""
    while process.poll() is None and not any((out / "masks").glob("*.png")):
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error; -1000 where it does not end."""
    try:
        _, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -1000, "it does not end"
    return process.returncode, err or ""


def judge(code: int, err: str, *codes: int, says: str = "") -> str | None:
    """The fault of a command that should have ended with one of `codes`."""
    if code not in codes:
        return f"exit code {code}, expected {' or '.join(map(str, codes))}: {err.strip()[-200:]}"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if "Traceback" in err or len(errors) > 1 or (code in (1, 2) and not errors):
        return f"not one line of error: {err.strip()[-200:]}"
    return None if says in err else f"says {err.strip()[:200]!r}, expected {says!r}"


def masks_of(out: Path) -> dict[str, bytes]:
    """Label images by name, decoded, so that how they were compressed does not count."""
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted((out / "masks").glob("*.png"))}


def broken_results(out: Path) -> str | None:
    """Name a damaged result, or masks without a line in the table; None if the results are whole."""
    with contextlib.suppress(FileNotFoundError):
        try:
            masks = masks_of(out)
        except (OSError, SyntaxError, ValueError) as error:
            return f"a mask is broken: {error}"
        lines: list[str] = []
        for path in out.rglob("*masks.jsonl*"):
            text = path.read_text()
            lines = text.split("\n")[:-1]
            if path.name == "masks.jsonl" and not text.endswith("\n"):
                return "the last line of masks.jsonl is cut"
            try:
                named = {f"{json.loads(line)['name']}.png" for line in lines}
            except ValueError:
                return "a line of the masks is no JSON"
            if lost := set(masks) - named:
                return f"{len(lost)} masks have no line"
        if (out / "overlay.mp4").exists():
            try:
                with av.open(str(out / "overlay.mp4")) as video:
                    sum(1 for _ in video.decode(video=0))
            except av.error.FFmpegError as error:
                return f"overlay.mp4 does not play: {error}"
    return None


def kills(at: Field) -> Iterator[Row]:
    """SIGKILL at any moment; `--resume` ends with what an uninterrupted run has."""
    row = Row("SIGKILL at a random moment, then --resume")
    began, whole = time.monotonic(), at.folder() / "out"
    finish(start(at.run(whole)))
    expected, took = masks_of(whole), time.monotonic() - began
    for turn in range(12):
        out = at.folder() / "out"
        process = start(at.run(out, "--save-every", "0.2"))
        if turn % 4:
            first_mask(process, out)
        time.sleep(random.uniform(0, 0.6 * took))
        process.kill()
        process.communicate()
        fault = broken_results(out)
        goes_on = "--resume" if out.exists() else "--overwrite"
        fault = fault or judge(*finish(start(at.run(out, goes_on))), 0)
        row.count(fault or (None if masks_of(out) == expected else "the result differs"))
    yield row


def disks(at: Field) -> Iterator[Row]:
    """Disks that fill up: one line names the file, and the files written so far are whole."""
    row = Row("no space for a file (RLIMIT_FSIZE)")
    for limit in (300, 3_000, 10_000, 30_000, 60_000):
        out = at.folder() / "out"
        hard = lambda most=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
        code, err = finish(start(at.run(out), preexec_fn=hard))
        row.count(judge(code, err, 1) or broken_results(out))
    yield row
    row = Row("a full disk (tmpfs)")
    for size in ("64k", "128k", "256k"):
        disk, saved = at.folder(), at.folder()
        code = f"import sys; from vosrt.cli.run import main; sys.exit(main({at.run(disk / 'out')!r}))"
        script = f"mount -t tmpfs -o size={size} none {disk} || exit 99; $0 -c '{code.replace(chr(39), chr(34))}'; "
        script += f"code=$?; cp -a {disk}/out {saved}/ 2>/dev/null; exit $code"
        done = subprocess.run(
            ["unshare", "-rm", "bash", "-c", script, sys.executable], capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode == 99:
            return
        row.count(judge(done.returncode, done.stderr, 1) or broken_results(saved / "out"))
    yield row
    row = Row("standard output full, closed or gone; other encodings")
    code = "import sys; from vosrt.cli.run import main; sys.exit(main(sys.argv[1:]))"
    for streams, right in (
        ("> /dev/full", 1),
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
        ("2> /dev/full", 0),
        ("| head -c 1 > /dev/null", 0),
    ):
        out = at.folder() / "out"
        script = f'set -o pipefail; "$0" -c "{code}" "$@" {streams}'
        done = subprocess.run(
            ["bash", "-c", script, sys.executable, *at.run(out, "--json")], capture_output=True, text=True
        )
        row.count(judge(done.returncode, done.stderr, right) or broken_results(out))
    for encoding in ("ascii", "latin-1"):
        environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        row.count(judge(*finish(start(at.run(at.folder() / "out"), env=environment)), 0))
    yield row


def twins(at: Field) -> Iterator[Row]:
    """Two runs into one folder: the second is refused and names the first."""
    row = Row("two runs into one folder")
    for delay in (0.0, 0.3, 1.0, None, None):
        out = at.folder() / "out"
        first = start(at.run(out))
        if delay is None:
            first_mask(first, out)
        time.sleep(delay or 0)
        second = start(at.run(out, "--overwrite"))
        results = {first.pid: finish(first), second.pid: finish(second)}
        won = [pid for pid, (code, _) in results.items() if code == 0]
        if len(won) != 1:
            row.count(f"exit codes {[code for code, _ in results.values()]}")
            continue
        (lost,) = (pid for pid in results if pid != won[0])
        row.count(judge(*results[lost], 2, says=str(won[0])) or broken_results(out))
    yield row


def signals(at: Field) -> Iterator[Row]:
    """Ctrl-C twice within 20 ms, and thrice."""
    row = Row("a second signal within 20 ms", before="0 of 9 (5 crashed)")
    for turn in range(9):
        out = at.folder() / "out"
        process = start(at.run(out))
        first_mask(process, out)
        time.sleep(0.05 * turn)
        process.send_signal(signal.SIGINT)
        time.sleep(random.uniform(0, 0.02))
        process.send_signal((signal.SIGINT, signal.SIGTERM)[turn % 2])
        code, err = finish(process)
        kept = None if not masks_of(out) or (out / "summary.json").exists() else "there is no summary"
        row.count(judge(code, err, 0, 130) or broken_results(out) or kept)
    yield row
    row = Row("a signal while Python still loads: nothing is written")
    for turn in range(5):
        out = at.folder() / "out"
        process = start(at.run(out))
        time.sleep(0.1 + 0.2 * turn)
        process.send_signal(signal.SIGINT)
        code, _ = finish(process)  # Python itself answers with a traceback until the command is loaded
        ended = None if code in (130, 1, -signal.SIGINT) else f"exit code {code}"
        row.count(ended or (f"wrote {out}" if out.exists() else None))
    yield row
    row = Row("a third signal ends at once")
    for _ in range(3):
        out = at.folder() / "out"
        process = start(at.run(out))
        first_mask(process, out)
        began = time.monotonic()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        code, err = finish(process)
        took = time.monotonic() - began
        row.count(judge(code, err, 0, 130) or (None if took < 3 else f"it took {took:.1f} s"))
    yield row


def files(at: Field) -> Iterator[Row]:
    """Names in files that lead elsewhere, and folders that vosrt did not fill."""
    row = Row("files of the user beside and outside results")
    model = ["--bundle", "fast", "--size", "96"]
    for make in (_davis_list, _ytvos_meta, _foreign_record, _foreign_summary, _linked_folder):
        root = at.folder()
        precious = root / "precious"
        precious.mkdir()
        (precious / "drawn.png").write_bytes(at.mask.read_bytes())
        before = {path: path.read_bytes() for path in root.rglob("drawn.png")}
        arguments, program = make(at, root, precious, model)
        code, err = finish(start(arguments, program))
        after = {path: path.read_bytes() for path in root.rglob("drawn.png")}
        stray = [path.name for path in root.iterdir() if path.name not in ("precious", "data", "out")]
        lost = f"{make.__name__}: files were lost or written ({stray})"
        fault = None if before.items() <= after.items() and not stray else lost
        row.count(fault or judge(code, err, 2))
    yield row


def _davis_list(at: Field, root: Path, precious: Path, model: list[str]) -> tuple[list[str], str]:
    for part in ("JPEGImages", "Annotations"):
        folder = root / "data" / part / "480p" / "dog"
        folder.mkdir(parents=True)
        Image.open(at.mask).convert("RGB" if part == "JPEGImages" else "L").save(folder / "00000.png")
    lists = root / "data" / "ImageSets" / "480p"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("/JPEGImages/480p/../00000.jpg /Annotations/480p/../00000.png\n")
    return [
        "run",
        str(root / "data"),
        "--dataset",
        "davis16",
        "-o",
        str(root / "out"),
        "--overwrite",
        *model,
    ], "vos-eval"


def _ytvos_meta(at: Field, root: Path, precious: Path, model: list[str]) -> tuple[list[str], str]:
    for part in ("JPEGImages", "Annotations"):
        folder = root / "data" / part / "one"
        folder.mkdir(parents=True)
        Image.open(at.mask).convert("RGB" if part == "JPEGImages" else "L").save(folder / "00000.png")
    objects = {"objects": {"1": {"frames": ["00000"]}}}
    (root / "data" / "meta.json").write_text(json.dumps({"videos": {"../../stray": objects, "one": objects}}))
    return ["run", str(root / "data"), "--dataset", "ytvos", "-o", str(root / "out"), *model], "vos-eval"


def _foreign_record(at: Field, root: Path, precious: Path, model: list[str]) -> tuple[list[str], str]:
    arguments, program = _davis_list(at, root, precious, model)
    (root / "data" / "ImageSets" / "480p" / "val.txt").write_text("dog\n")
    (root / "out").mkdir()
    record = {
        "schema": 1,
        "settings": {},
        "sequences": {"../precious": {}, str(precious): {}},
        "failed": {},
        "notes": [],
    }
    (root / "out" / "results.json").write_text(json.dumps(record))
    return arguments, program


def _foreign_summary(at: Field, root: Path, precious: Path, model: list[str]) -> tuple[list[str], str]:
    (precious / "summary.json").write_text("{}")
    return at.run(precious, "--overwrite"), "vos-run"


def _linked_folder(at: Field, root: Path, precious: Path, model: list[str]) -> tuple[list[str], str]:
    (root / "out").mkdir()
    (root / "out" / "masks").symlink_to(precious)
    (root / "out" / "summary.json").write_text("{}")
    return at.run(root / "out", "--overwrite"), "vos-run"


_RACE = """
import os, sys, threading, time, numpy as np, vosrt
jobs, limit = sys.argv[1].split(","), 40
stream = vosrt.Model.load("fast", threads=1).stream()
images = [np.random.default_rng(i).integers(0, 255, (64, 96, 3), dtype=np.uint8) for i in range(8)]
mask = np.zeros((64, 96), np.uint8); mask[10:40, 10:50] = 1
stream.start(images[0], mask)
def add(i):
    drawn = np.zeros((64, 96), np.uint8); drawn[(i * 3) % 50 : (i * 3) % 50 + 10, 5:30] = 2 + i % 100; stream.add(drawn)
does = {"step": lambda i: stream.step(images[i % 8]), "add": add, "remove": lambda i: stream.remove(2 + i % 100),
        "soft": lambda i: stream.soft_masks(), "save": lambda i: stream.save(),
        "close": lambda i: (time.sleep(0.002), stream.close() if i == 100 else None)}
untyped = []
def work(job):
    for i in range(200):
        try: does[job](i)
        except vosrt.VosrtError: pass
        except Exception as error: untyped.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
[thread.start() for thread in threads]; end = time.time() + limit
[thread.join(max(0, end - time.time())) for thread in threads]
if untyped: print(untyped[0], file=sys.stderr)
os._exit(3 if any(thread.is_alive() for thread in threads) else 4 if untyped else 0)
"""

_MISUSE = """
import copy, os, pickle, signal, sys, numpy as np, vosrt
stream = vosrt.Model.load("fast", threads=2).stream()
image, mask = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8); mask[10:40, 10:50] = 1
stream.start(image, mask)
if sys.argv[1] == "fork":
    child = os.fork()
    if not child:
        signal.alarm(20)
        try: stream.step(image)
        except vosrt.VosrtError: os._exit(0)
        os._exit(5)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) and 5)
try: {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}[sys.argv[1]](stream)
except (vosrt.VosrtError, TypeError): sys.exit(0)
sys.exit(5)
"""

_SESSIONS = """
import random, resource, sys, numpy as np, vosrt
model = vosrt.Model.load("fast", threads=1)
image, mask = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8); mask[10:40, 10:50] = 1
stream = model.stream(); stream.start(image, mask); stream.step(image); session = stream.save()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), used + (1 << 29)))
chance, tried, bad = random.Random(5), 0, []
def attempt(data):
    global tried
    tried += 1
    try: model.stream().load(bytes(data))
    except vosrt.SessionError: pass
    except BaseException as error: bad.append(f"{type(error).__name__}: {error}")
for offset in range(0, min(len(session), 256), 4):
    for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x40000000, 100_000, 0):
        data = bytearray(session); data[offset:offset + 4] = value.to_bytes(4, "little"); attempt(data)
for _ in range(1500):
    data = bytearray(session)
    for _ in range(chance.choice((1, 1, 2, 8))): data[chance.randrange(len(data))] = chance.randrange(256)
    attempt(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
print(tried, len(bad), *bad[:1])
"""


def _script(code: str, *arguments: str) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1000, "", "it does not end"
    return done.returncode, done.stdout, done.stderr


def threads(at: Field) -> Iterator[Row]:
    """One stream in several threads; forks and copies."""
    row = Row("one stream in several threads", before="1 of 18 (segfault), 2 of 6 (hang)")
    for jobs in (
        "step,step",
        "step,step,step,step",
        "step,add,remove",
        "step,add,remove,soft",
        "step,save,add",
        "step,close",
    ):
        for _ in range(2):
            code, _, err = _script(_RACE, jobs)
            row.count(None if code == 0 else f"{jobs}: exit code {code} {err.strip()[-200:]}")
    yield row
    row = Row("a stream that is copied, pickled or used after fork")
    for how in ("copy", "deepcopy", "pickle", "fork"):
        code, _, err = _script(_MISUSE, how)
        row.count(None if code == 0 else f"{how}: exit code {code} {err.strip()[-200:]}")
    yield row


def sessions(at: Field) -> Iterator[Row]:
    """Sessions that lie about their sizes, and damaged ones, with 512 MB to spare."""
    code, out, err = _script(_SESSIONS)
    row = Row("sessions that are damaged or lie", before="98 kB asked for 606 MB, 6 MB for 37 GB")
    if code:
        row.count(f"exit code {code}: {err.strip()[-300:]}")
    else:
        tried, bad, *why = out.split(maxsplit=2)
        row.tried, row.survived, row.faults = int(tried), int(tried) - int(bad), why
    yield row


def bundles(at: Field) -> Iterator[Row]:
    """Graphs of plain operators that crash or exhaust engines."""
    row = Row("bundles of hostile graphs", before="114 of 131")
    most = 12 << 30
    for name, build in HOSTILE.items():
        bundle = write_bundle(at.folder() / "bundle", build().SerializeToString(), channels=CHANNELS)
        arguments = [*at.run(at.folder() / "out"), "--bundle", str(bundle), "--end", "2"]
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most))  # noqa: E731
        fault = judge(*finish(start(arguments, preexec_fn=limit)), 2)
        row.count(None if fault is None else f"{name}: {fault}")
    yield row


def inputs(at: Field) -> Iterator[Row]:
    """Files that do not end, are none, or are called strangely."""
    row = Row("inputs that are pipes, devices, bombs or huge")
    pipe, huge = at.folder() / "pipe", at.folder() / "huge.json"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(20 << 30)
    for option in ("--polygon", "--mask"):
        for path in (Path("/dev/zero"), pipe, huge, at.clip):
            arguments = [str(at.clip), option, str(path), *_MODEL, "-o", str(at.folder() / "out")]
            row.count(judge(*finish(start(arguments)), 2))
    yield row
    row = Row("names: not UTF-8, colons, brackets, 250 bytes")
    for name in (os.fsdecode(b"caf\xe9"), "12:30:15", "[v3] [bold]", "x" * 240, "-", "a\nb", "\x1b[31m"):
        folder = at.folder()
        clip = folder / f"{name}.mp4"
        shutil.copy(at.clip, clip)
        arguments = [clip.name if name != "-" else f"./{clip.name}", *at.run("out" + name, "--json")[1:], "--end", "4"]
        code, err = finish(start(arguments, cwd=folder))
        fault = judge(code, err, 0)
        if fault is None and len(list(folder.glob("out*/masks/*.png"))) != 4:
            fault = "masks are missing"
        row.count(None if fault is None else f"{name!r}: {fault}")
    frames = at.folder() / "frames"
    frames.mkdir()
    for number in range(2):
        Image.open(at.mask).convert("RGB").save(frames / f"{'n' * 249}{number}.jpg")
    code, err = finish(start([str(frames), *at.run(at.folder() / "out")[1:]]))
    row.count(judge(code, err, 0, 2))
    yield row


def telemetry(at: Field) -> Iterator[Row]:
    """Packets to strangers, files in HOME, and delays where names do not resolve."""
    if shutil.which("strace") is None:
        return
    row = Row("packets, and files in HOME, of an ordinary command", before="a post on every import")
    late = Row("a machine without a network", before="20 s, 61 lines of traceback")
    out = at.folder()
    checkpoint = out / "c.safetensors"
    commands = [
        ("vos-run", at.run(out / "run")),
        ("vos-run", ["doctor"]),
        ("vos-eval", ["cycle", str(at.clip), "--mask", str(at.mask), *_MODEL[:4], "--frames", "20"]),
        ("vos-train", ["init", "-o", str(checkpoint)]),
        ("vos-export", [str(checkpoint), "-o", str(out / "exported")]),
    ]
    for program, arguments in commands:
        home, log = at.folder(), at.folder() / "calls"
        code = f"import sys; from {PROGRAMS[program]} import main; sys.exit(main())"
        traced = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(log)]
        environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        captured: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "check": False}
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run([*traced, *command], **captured)
        packets = [line for line in log.read_text().splitlines() if "AF_INET" in line]
        written = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        written = [name for name in written if not name.startswith(".cache/vosrt/")]
        fault = f"{packets[0]}" if packets else f"wrote {written} into HOME" if written else None
        row.count(None if fault is None else f"{program} {arguments[0]}: {fault}")
        if program == "vos-run" and arguments[0] != "doctor":
            took = []
            for network in ([], ["unshare", "-rn"]):
                began = time.monotonic()
                again = subprocess.run([*network, *command, "--overwrite"], **captured)
                took.append(time.monotonic() - began)
            fault = judge(again.returncode, again.stderr, 0)
            late.count(fault or (None if took[1] < 2 * took[0] + 5 else f"{took[1]:.0f} s, else {took[0]:.0f} s"))
    yield row
    yield late


ATTACKS: dict[str, Callable[[Field], Iterator[Row]]] = {
    attack.__name__: attack
    for attack in (kills, disks, twins, signals, files, threads, sessions, bundles, inputs, telemetry)
}


def keep(rows: list[Row]) -> None:
    """Write the rows to results/attack.jsonl in place of earlier ones of the same attacks."""
    path = RESULTS / "attack.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []
    counted = {row["attack"]: row for row in known}
    for row in rows:
        counted[row.attack] = {name: getattr(row, name) for name in ("attack", "tried", "survived", "before")}
    write("attack", list(counted.values()))


def main() -> int:
    """Attack; 0 if everything was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], help="default: all")
    chosen = parser.parse_args().attacks or list(ATTACKS)
    random.seed(3)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="vosrt-attack-") as folder:
        at = Field(Path(folder))
        for name in chosen:
            for row in ATTACKS[name](at):
                rows.append(row)
                print(
                    f"{row.attack:<55} {row.survived:>5} of {row.tried:<5} before: {row.before or 'not counted'}",
                    flush=True,
                )
                for fault in row.faults[:5]:
                    print(f"    {' '.join(fault.split())[:400]}", flush=True)
    keep(rows)
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
