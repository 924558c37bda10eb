"""Milliseconds of the encoder in fp32, bf16 and int8, engine by engine, in one run.

    python -m benchmarks.kernels.quantised  # the default bundle
    python -m benchmarks.kernels.quantised --bundle net  # your own; quantised on drawn frames if it has no int8 graph
    python -m benchmarks.kernels.quantised --toy  # small and quick, nothing written

Runs of all variants alternate, so that a slow moment of the machine hits all of them. What int8 costs in J&F is
measured by `vos-export quantise` and stands in the bundle that it makes.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import Watch, parser_of, write
from vosrt.bundle import Bundle, load_bundle
from vosrt.engines.base import Engine
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import VosrtError
from vosrt.types import Precision
from vosrt_export.quantise import Quantisation, QuantiseOptions
from vosrt_export.verify_bundle import drawn_frames

ENGINES = ("cpu", "openvino")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def variants(bundle: Bundle, int8: Path, threads: int) -> dict[str, Engine]:
    """Return every engine and precision that this machine runs, by name; print why the others do not run."""
    graphs = {"": bundle.graph_path("encoder"), "int8 + ": int8}
    engines: dict[str, Engine] = {}
    for name in ENGINES:
        for prefix, graph in graphs.items():
            for precision in PRECISIONS:
                title = f"{name} {prefix}{precision}"
                try:
                    engines[title] = create_encoder_engine(
                        graph, bundle.manifest.encoder, engine=name, precision=precision, threads=threads
                    )
                except VosrtError as error:
                    print(f"{title}: not run: {error}")
    return engines


def measure(engines: dict[str, Engine], input_name: str, height: int, width: int, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run, after two to warm up."""
    frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {title: [] for title in engines}
    for run in range(-2, runs):
        for title, engine in engines.items():
            began = time.perf_counter()
            engine.run({input_name: frame})
            if run >= 0:
                times[title].append(1e3 * (time.perf_counter() - began))
    return times


def report(
    times: dict[str, list[float]], height: int, width: int, bundle: Bundle, foreign: float
) -> list[dict[str, Any]]:
    """A row per variant, with how many times faster than fp32 on the same engine it is."""
    rows = []
    medians = {title: float(np.median(each)) for title, each in times.items()}
    for title, each in times.items():
        engine, _, precision = title.partition(" ")
        p50, p95, p99 = np.percentile(each, [50, 95, 99])
        rows.append(
            {
                "bundle": bundle.manifest.name,
                "engine": engine,
                "precision": precision,
                "height": height,
                "width": width,
                "runs": len(each),
                "p50_ms": round(float(p50), 2),
                "p95_ms": round(float(p95), 2),
                "p99_ms": round(float(p99), 2),
                "fp32_over_this": round(medians[f"{engine} fp32"] / medians[title], 3),
                "foreign_cores": foreign,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse options, run, write results/quantised.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0, help="0: one per processor")
    options = parser.parse_args()
    height, width, runs = (96, 160, 3) if options.toy else (480, 854, options.runs)
    bundle = load_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        gate: dict[str, Any] = {}
        if "encoder_int8" in bundle.manifest.graphs:
            int8 = bundle.graph_path("encoder_int8")
            found = bundle.manifest.verification["int8"]["gate"]
            gate = {key: found[key] for key in ("j_and_f_before", "j_and_f_after")}
        else:
            work = Quantisation(bundle, drawn_frames(), QuantiseOptions(threads=options.threads), Path(folder))
            int8 = work.quantise(work.layers)
        engines = variants(bundle, int8, options.threads)
        with Watch() as watch:
            times = measure(engines, bundle.manifest.encoder.input_name, height, width, runs)
    rows = report(times, height, width, bundle, watch.foreign_cores)
    for row in rows:
        row |= gate if row["precision"] == "int8 + fp32" else {}
    write("quantised", rows, toy=options.toy)


if __name__ == "__main__":
    main()
