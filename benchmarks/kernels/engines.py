"""TensorRT engines of the default bundle, built on this machine: seconds and size per GPU architecture and precision.

    python -m benchmarks.kernels.engines        # TensorRT-RTX for sm_86, sm_89 and sm_120; needs none of these GPUs
    python -m benchmarks.kernels.engines --toy  # one engine, nothing written

An engine is built, checked against its record as the runtime does before it loads one, and, where there is an NVIDIA
driver and the engine is for its GPU, loaded and inspected. TensorRT-RTX compiles its kernels when an engine is first
run on a GPU, which is why building takes seconds. How fast engines run is measured by benchmarks/stream/frames.py on a
machine with a GPU; there is none behind the figures in results/engines.jsonl, which say so.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import Watch, parser_of, write
from vosrt.bundle import load_bundle
from vosrt.engines.tensorrt_files import EnginePrecision, read_engine
from vosrt.engines.tensorrt_flavour import TENSORRT_RTX
from vosrt.errors import VosrtError
from vosrt_export.sizes import preset
from vosrt_export.tensorrt import EngineOptions, Outcome, build_engines, inspect_engine

ARCHITECTURES = ("86", "89", "120")
PRECISIONS: tuple[EnginePrecision, ...] = ("fp32", "bf16", "fp16")


def measure(bundle: Path, architecture: str, precision: EnginePrecision, repeats: int) -> dict[str, Any]:
    """Build one engine several times; the first build of a process also loads TensorRT."""
    options = EngineOptions(
        flavour="rtx",
        capabilities=(architecture,),
        precision=precision,
        profiles=(preset("480p"), preset("720p"), preset("1080p")),
        rebuild=True,
    )
    seconds = []
    with Watch() as watch:
        for _ in range(repeats):
            (outcome,) = build_engines(bundle, options)
            seconds.append(outcome.record.build_seconds)
    read_engine(outcome.path, outcome.record)
    record = outcome.record
    return {
        "flavour": record.flavour,
        "version": record.version,
        "architecture": record.architecture,
        "precision": record.precision,
        "sizes": [str(profile) for profile in record.profiles],
        "build_s": min(seconds),
        "build_s_all": seconds,
        "mb": round(record.bytes / 1e6, 2),
        "layers_read": record.layers,
        "foreign_cores": watch.foreign_cores,
        **inspected(outcome),
    }


def inspected(outcome: Outcome) -> dict[str, Any]:
    """Return TensorRT's description of the engine, or why it gave none."""
    try:
        inspection = inspect_engine(outcome.path, outcome.record, TENSORRT_RTX)
    except VosrtError as error:
        return {"loaded": False, "why_not_loaded": str(error)}
    return {
        "loaded": True,
        "layers_fused": inspection.layers,
        "tensors": list(inspection.tensors),
        "memory_mb": round(inspection.memory_bytes / 1e6, 2),
    }


def main() -> None:
    """Build them all."""
    parser = parser_of(__doc__)
    toy = parser.parse_args().toy
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(load_bundle("default").path, bundle)
        measure(bundle, ARCHITECTURES[0], PRECISIONS[0], 1)  # loads libraries
        rows = []
        for architecture in ARCHITECTURES[:1] if toy else ARCHITECTURES:
            for precision in PRECISIONS[:1] if toy else PRECISIONS:
                rows.append(measure(bundle, architecture, precision, 1 if toy else 3))
                print(json.dumps(rows[-1]), flush=True)
    if not toy:
        write("engines", rows)


if __name__ == "__main__":
    main()
