"""The measured process of ``vos-bench``: one case, frame after frame, every stage timed.

    python -m vosrt.bench.session '{"source": …, "bundle": …, "threads": …, "writes": …, "case": {…}}'

Stages run one after the other, which separates their times; ``vos-run`` overlaps them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vosrt._results import Results
from vosrt.bench.cases import Case, case_from
from vosrt.bench.clip import mark_objects
from vosrt.bench.nvml import EnergyMeter, open_gpu
from vosrt.bench.rapl import PackageMeter, open_packages
from vosrt.bench.roofline import match_work, product_precision
from vosrt.bench.worker import serve
from vosrt.core.memory import create_memory
from vosrt.engines.registry import on_processor
from vosrt.errors import SourceError
from vosrt.model import Model, match_precision
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.sinks import OverlayVideo, PaletteMasks, ResultFolder, RleLines, Sink
from vosrt.video.source import open_source
from vosrt.video.tables import ObjectTable

_FPS = 24.0
_MASKS_KEPT = 100  # a long measurement must not fill the disk


class CaseRun:
    """Decode, step and write one frame at a time without end.

    Args:
        source: a video file or folder; it is repeated.
        bundle: as for ``Model.load``.
        threads: as for ``Model.load``.
        folder: for the results that ``vos-run`` writes by default; they are written and thrown away.
    """

    def __init__(self, case: Case, *, source: str, bundle: str, threads: int, folder: Path) -> None:
        self._source = source
        self._model = Model.load(
            bundle, engine=case.engine, precision=case.precision, threads=threads, device=case.device
        )
        options = self._model.manifest.inference
        if case.context is not None:
            options = replace(options, context=case.context)
        self._channels = self._model.manifest.encoder.channels
        memory, self._core = create_memory(
            1,
            1,
            self._channels,
            options,
            align_corners=self._model.manifest.encoder.align_corners,
            precision=match_precision(case.precision),
            threads=threads,
            device=case.device,
        )
        self._device = case.device
        self._isa = memory.info["isa"]
        self._options = options
        self._stream = self._model.stream(size=case.size, options=options)
        self._frames = self._repeat()
        first = next(self._frames).image
        self._height, self._width = first.shape[:2]
        embedding = self._model.encode(first, case.size)
        self._grid = (embedding.shape[0], embedding.shape[1])
        self._stream.start(embedding, mark_objects(self._height, self._width, case.objects))
        results = Results(folder, "vos-bench", {})
        sinks: dict[str, Sink] = {
            "table": ObjectTable(results, "objects.csv"),
            "video": OverlayVideo(results, "overlay.mp4", _FPS),
            "rle": RleLines(results, "masks.jsonl"),
            "masks": PaletteMasks(results, "masks"),
        }
        self._sink = ResultFolder(results, sinks, options)

    def describe(self) -> dict[str, Any]:
        """Describe the model and the size of its matching problem."""
        description = self._model.describe()
        engine = description["engines"]["encoder"]
        work = match_work(self._grid, self._channels, options=self._options, isa=self._isa)
        return {
            "bundle": description["bundle"],
            "weights": description["weights"],
            "engine": engine["name"],
            "precision": engine["precision"],
            "engine_version": engine["version"],
            "core": self._core,
            "isa": self._isa,
            "device": self._device,
            "context": self._options.context,
            "match_gflop": round(work.flop / 1e9, 3),
            "match_gb": round(work.bytes / 1e9, 5),
            "match_precision": product_precision(self._isa),
            "channels": self._channels,
            "frame": [self._height, self._width],
            "grid": list(self._grid),
        }

    def search(self) -> dict[str, Any]:
        """Describe how the newest frame was searched, and what the memory takes."""
        memory = self._stream.describe()
        return {name: memory[name] for name in ("head", "survivors", "bytes") if name in memory}

    def step(self) -> dict[str, float]:
        """One frame; milliseconds by stage."""
        began = time.perf_counter()
        frame = next(self._frames)
        decoded = time.perf_counter()
        result = self._stream.step(frame.image)
        stepped = time.perf_counter()
        self._sink.write(SegmentedFrame.of(frame, result))
        ended = time.perf_counter()
        return {
            "decode": 1e3 * (decoded - began),
            **result.timings_ms,
            "write": 1e3 * (ended - stepped),
            "frame": 1e3 * (ended - began),
        }

    def _repeat(self) -> Iterator[Frame]:
        """The source again and again. Opening reads its first frame, so that one is left out of every repetition."""
        number = 0
        while True:
            source = open_source(self._source)
            try:
                frames = iter(source)
                first = next(frames)
                if number == 0:
                    yield replace(first, index=0, time_s=0.0, name="00000")
                for frame in frames:
                    number += 1
                    name = f"{number % _MASKS_KEPT:05d}"
                    yield replace(frame, index=number, time_s=number / _FPS, name=name)
            finally:
                source.close()
            if number == 0:
                raise SourceError(f"{self._source}: holds one frame; expected a video to measure on")


def main() -> None:
    """Serve the case that the command line describes."""
    given = json.loads(sys.argv[1])
    case = case_from(given["case"])
    meter: EnergyMeter | None = None
    packages: PackageMeter | None = None
    session: CaseRun | None = None

    with tempfile.TemporaryDirectory(prefix="vosrt-bench-") as folder:

        def open_session() -> CaseRun:
            nonlocal meter, packages, session
            session = CaseRun(
                case, source=given["source"], bundle=given["bundle"], threads=given["threads"], folder=Path(folder)
            )
            if case.device != "cpu" or not on_processor(session.describe()["engine"]):
                gpu, _ = open_gpu()
                meter = None if gpu is None else EnergyMeter(gpu)
            packages, _ = open_packages()
            return session

        def read_more() -> Mapping[str, Any]:
            more: dict[str, Any] = {} if session is None else {"memory": session.search()}
            if meter is not None:
                more["gpu"] = meter.read()
            return more if packages is None else {**more, "packages_j": packages.read_j()}

        serve(open_session, around=read_more)


if __name__ == "__main__":
    main()
