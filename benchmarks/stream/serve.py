"""Load test of `vos-run serve`: many clients at once, some of which vanish in the middle of a frame.

    python -m benchmarks.stream.serve          # 16 clients, 480p frames at a working size of 240
    python -m benchmarks.stream.serve --toy    # a tiny problem, nothing written

`wait` is from sending a frame until its mask has come, of all clients. `memory` is that of the server: with one stream,
and the most under load. It is checked that one client too many is sent away, and that vanished clients free their
streams.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import cv2
import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benchmarks.machine import Watch, parser_of, write
from vosrt.bench.clip import mark_objects, render, size_of

PROGRAM = [sys.executable, "-c", "import sys; from vosrt.cli.run import main; sys.exit(main())"]


class Client:
    """A client that follows one object, and measures how long each frame takes."""

    def __init__(self, address: str, frames: list[bytes], mask: bytes) -> None:
        self._frames = frames
        self.waits_ms: list[float] = []
        self.socket = connect(address, open_timeout=600, ping_timeout=None, max_size=None).__enter__()
        self.socket.send('{"mask": true}')
        self.socket.send(mask)

    def step(self) -> None:
        """One frame."""
        began = time.perf_counter()
        self.socket.send(self._frames[len(self.waits_ms) % len(self._frames)])
        answer = json.loads(self.socket.recv())
        if "error" in answer:
            raise SystemExit(answer["error"])
        self.socket.recv()
        self.waits_ms.append(1e3 * (time.perf_counter() - began))


def figure(address: str, name: str) -> float:
    """One figure of the server."""
    with urllib.request.urlopen(address.replace("ws:", "http:").replace("/v1/stream", "/metrics")) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else float("nan")


def png(mask: np.ndarray[Any, Any]) -> bytes:
    """A mask as a file."""
    data = io.BytesIO()
    Image.fromarray(mask).save(data, format="PNG")
    return data.getvalue()


def measure(address: str, clients: int, size: int, frames: int) -> dict[str, Any]:
    """Load a server that takes so many clients.

    Raises:
        SystemExit: it did not keep its limits.
    """
    height, width = size_of(size)
    clip = [cv2.imencode(".jpg", render(height, width, t))[1].tobytes() for t in range(8)]
    mask = png(mark_objects(height, width, 1))
    first = Client(address, clip, mask)
    first.step()
    first.waits_ms.clear()
    alone = figure(address, "process_resident_memory_bytes")
    running = [first, *(Client(address, clip, mask) for _ in range(clients - 1))]
    try:
        Client(address, clip, mask).step()
    except ConnectionClosed:
        pass
    else:
        raise SystemExit("one client too many was served")
    threads = [threading.Thread(target=lambda each=each: [each.step() for _ in range(frames)]) for each in running]
    most, began = alone, time.perf_counter()
    with Watch() as watch:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, figure(address, "process_resident_memory_bytes"))
            time.sleep(0.2)
    took = time.perf_counter() - began
    for each in running:  # vanish
        each.socket.send(clip[0])
        each.socket.socket.close()
    while figure(address, "vosrt_sessions"):
        time.sleep(0.1)
    waits = np.concatenate([each.waits_ms for each in running])
    p50, p99 = np.percentile(waits, (50, 99))
    return {
        "what": f"{clients} clients",
        "size": size,
        "frames": clients * frames,
        "fps": round(clients * frames / took, 2),
        "wait_p50_ms": round(float(p50), 1),
        "wait_p99_ms": round(float(p99), 1),
        "memory_one_mib": round(alone / 2**20),
        "memory_most_mib": round(most / 2**20),
        "foreign_cores": watch.foreign_cores,
    }


def main() -> None:
    """Parse options, measure, write results/serve.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--bundle", default="default", help="as for vos-run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--size", type=int, default=480, help="short side of frames")
    parser.add_argument("--working-size", type=int, default=240)
    parser.add_argument("--frames", type=int, default=30, help="of each client")
    options = parser.parse_args()
    clients, size, working, frames = options.clients, options.size, options.working_size, options.frames
    model = ["--bundle", options.bundle]
    if options.toy:
        clients, size, working, frames, model = 3, 64, 64, 2, ["--engine", "fake"]
    arguments = ["serve", "--port", "0", "--sessions", str(clients), "--size", str(working), *model, "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "VOSRT_TOKEN"}
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            row = measure(address, clients, size, frames) | {"working_size": working, "bundle": options.bundle}
        finally:
            server.send_signal(signal.SIGINT)
    write("serve", [row], toy=options.toy, show=True)


if __name__ == "__main__":
    main()
