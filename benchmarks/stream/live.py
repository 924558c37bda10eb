"""vos-run on a live RTSP camera for 10 000 frames: drop-outs, stalls, changed sizes; latency and memory.

    python -m benchmarks.stream.live        # 10 000 frames, 7 minutes; renews results/live.jsonl
    python -m benchmarks.stream.live --toy  # a few hundred frames, nothing written

The camera is GStreamer's RTSP server on this machine, filming the clip of `vos-run demo`; rtsp_server.py beside this
file says what to install, and without it nothing is measured. While it is followed, these happen to it in turn:
    drop     the server is killed and started again
    flap     that three times in a row
    stall    it stops for less than vosrt waits for data, and then sends what it owes
    hang     it stops for longer than that, its connections open
    size     pictures change their size on the open connection
    resize   the server is killed and comes back with another size

`seen` are pictures that were decoded; those that came too fast were dropped. `latency` is from a decoded picture to its
written mask. `dark` is the time without pictures in objects.csv, to be compared with `away`, in which the camera gave
none.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import IO, Any

import av
import cv2
import numpy as np

from benchmarks.machine import Watch, parser_of, write
from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.cli.demo import CLIP

PROGRAM = [sys.executable, "-c", "import sys; from vosrt.cli.run import main; sys.exit(main())"]
SERVER = Path(__file__).with_name("rtsp_server.py")
HAS_SERVER = 'import gi; gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")'
SIZES = ("320x240", "480x360", "320x180")
EVENTS = {"drop": 3.0, "size": 0.0, "stall": 5.0, "resize": 2.0, "flap": 1.0, "hang": 20.0}  # with seconds
_PATIENCE_S = 120.0
_DARK_S = 0.5  # what lies further apart than its numbers say is a time without pictures


def find_python() -> str | None:
    """Return a Python that has GStreamer's RTSP server, or None."""
    for program in (sys.executable, "/usr/bin/python3"):
        if shutil.which(program) and not subprocess.run([program, "-c", HAS_SERVER], capture_output=True).returncode:
            return program
    return None


class Camera:
    """GStreamer's RTSP server, to which things can happen.

    Args:
        python: what `find_python` returned.
        frames: u8 [H, W, 3] BGR, filmed again and again.
        fps: pictures a second.
        size: of the pictures, such as ``"320x240"``.

    Attributes:
        away_s: seconds so far for which no picture could come.
    """

    def __init__(
        self, python: str, frames: Sequence[np.ndarray[Any, Any]], folder: Path, *, fps: int, size: str = SIZES[0]
    ) -> None:
        for t, frame in enumerate(frames):
            cv2.imwrite(str(folder / f"{t:05d}.jpg"), frame)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address, self.size, self.away_s = f"rtsp://127.0.0.1:{port}/camera", size, 0.0
        self.fps = fps
        self._command = [python, str(SERVER), str(folder), "--port", str(port), "--fps", str(fps), "--size"]
        self._sizes = cycle(size for size in SIZES if size != self.size)
        self._start()

    def _start(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*self._command, self.size], text=True, **pipes)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit("the RTSP server does not start")
        self._reached = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout, self._reached), daemon=True)
        self._listener.start()

    @staticmethod
    def _listen(lines: IO[str], reached: threading.Event) -> None:
        """Note that a client came."""
        for _ in lines:
            reached.set()

    def close(self) -> None:
        """End the server at once."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def happen(self, event: str, seconds: float) -> None:
        """Do what the module says of an event, and wait until a camera that was started again is reached.

        Args:
            seconds: for which the camera stays away.
        """
        if event in ("size", "resize"):
            self.size = next(self._sizes)
        if event == "size":
            assert self._process.stdin is not None
            self._process.stdin.write(f"{self.size}\n")
            self._process.stdin.flush()
            return
        for _ in range(3 if event == "flap" else 1):
            began = time.monotonic()
            if event in ("stall", "hang"):
                self._process.send_signal(signal.SIGSTOP)
                time.sleep(seconds)
                self._process.send_signal(signal.SIGCONT)
            else:
                self.close()
                time.sleep(seconds)
                self._start()
            self.away_s += time.monotonic() - began
        self._reached.wait(_PATIENCE_S)


def resident_mib(process: int) -> float:
    """Resident memory of a process in MiB; 0 once it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


def follow(
    camera: Camera, out: Path, options: Sequence[str], events: Sequence[tuple[int, str, float]], frames: int
) -> dict[str, Any]:
    """Follow an object while events happen; then Ctrl-C.

    Args:
        events: frame from which on one happens, what it is, and for how many seconds.

    Returns:
        The row; see the module.

    Raises:
        SystemExit: vos-run failed.
    """
    command = [*PROGRAM, camera.address, "--out", str(out), "--box", "80,40,160,160", "--no-video", "--json", *options]
    began, memory, waiting = time.monotonic(), [], [*events, (frames, "end", 0.0)]
    with Watch() as watch, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        def look() -> None:
            while process.poll() is None:
                memory.append(resident_mib(process.pid))
                time.sleep(0.5)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            while process.poll() is None and waiting:
                if newest_of(out) < waiting[0][0]:
                    time.sleep(0.1)
                    continue
                _, event, seconds = waiting.pop(0)
                if event != "end":
                    camera.happen(event, seconds)
        finally:
            process.send_signal(signal.SIGINT)
        told = process.stdout.read()
        looking.join()
    if process.returncode != EXIT_INTERRUPTED:
        raise SystemExit(f"vos-run ended with {process.returncode} before {waiting[:1]}: {told}")
    summary = json.loads(told)
    with open(out / "objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    at = [(int(row["frame"]), float(row["time_s"])) for row in rows]
    holes = [after - before - (b - a) / camera.fps for (a, before), (b, after) in pairwise(at)]
    rooms = memory[len(memory) // 5 : -1]
    return {
        "seen": int(rows[-1]["frame"]) + 1,
        "written": summary["frames"],
        "events": {event: sum(each == event for _, each, _ in events) for event in EVENTS},
        "reconnects": reconnects(summary["warnings"]),
        "away_s": round(camera.away_s, 1),
        "dark_s": round(sum(hole for hole in holes if hole > _DARK_S), 1),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "latency_ms": summary["stages_ms"]["latency"],
        "memory_fifth_mib": round(rooms[0]) if rooms else None,
        "memory_end_mib": round(rooms[-1]) if rooms else None,
        "memory_most_mib": round(max(memory, default=0)),
        "foreign_cores": watch.foreign_cores,
        "warnings": [line.partition(": ")[2] for line in summary["warnings"]],
    }


def newest_of(out: Path) -> int:
    """Number of the newest frame of which a mask was written, -1 before the first."""
    try:
        stems = [name.removesuffix(".png") for name in os.listdir(out / "masks")]
    except FileNotFoundError:
        return -1
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1)  # others are being written


def reconnects(warnings: Sequence[str]) -> int:
    """Return how often a connection was opened again, by what vos-run says."""
    for line in warnings:
        if found := re.search(r"dropped before (?:(\d+) frames|frames? ([\d, ]+))", line):
            return int(found[1]) if found[1] else len(found[2].split(","))
    return 0


def frames_of(clip: Path, size: str = SIZES[0]) -> list[np.ndarray[Any, Any]]:
    """Decode a clip, u8 [H, W, 3] BGR, in a size such as ``"320x240"``."""
    width, height = map(int, size.split("x"))
    with av.open(str(clip)) as container:
        return [picture.to_ndarray(format="bgr24", width=width, height=height) for picture in container.decode(video=0)]


def plan(frames: int, events: Sequence[tuple[str, float]]) -> list[tuple[int, str, float]]:
    """Spread events over the frames that are to be seen."""
    return [
        (frames * place // (len(events) + 1), event, seconds) for place, (event, seconds) in enumerate(events, start=1)
    ]


def main() -> None:
    """Parse options, measure, write results/live.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--bundle", default="fast", help="as for vos-run")
    parser.add_argument("--size", type=int, default=96, help="short side of the working frame")
    parser.add_argument("--frames", type=int, default=10_000, help="to be seen")
    parser.add_argument("--fps", type=int, default=30, help="pictures that the camera takes in a second")
    options = parser.parse_args()
    python = find_python()
    if python is None:
        print("not measured: GStreamer's RTSP server is not installed; see benchmarks/stream/rtsp_server.py")
        return
    frames, model, events = options.frames, ["--bundle", options.bundle], [*EVENTS.items()] * 2
    if options.toy:
        frames, model, events = 150, ["--engine", "fake"], [("drop", 0.2), ("size", 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        camera = Camera(python, frames_of(CLIP), pictures, fps=options.fps)
        arguments = [*model, "--size", str(options.size), "--reconnect", "60"]
        try:
            row = follow(camera, Path(folder, "out"), arguments, plan(frames, events), frames)
        finally:
            camera.close()
    row = {"bundle": options.bundle, "size": options.size, "fps": options.fps, **row}
    write("live", [row], toy=options.toy, show=True)


if __name__ == "__main__":
    main()
