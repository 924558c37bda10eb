"""The benchmark tables of the documents say what was measured, and what was not, why."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes.tensorrt import FakeDriver
from vosrt.engines import nvidia

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE = {"processor": "Test", "cores": 2, "memory_gib": 8.0, "instruction_sets": ["avx2"]}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/report`` on results of this test."""
    if not (REPOSITORY / "benchmarks").is_dir():
        pytest.skip("no benchmarks beside the tests")
    module = importlib.import_module("benchmarks.report.__main__")
    for each in (module, importlib.import_module("benchmarks.report.tables")):
        monkeypatch.setattr(each, "RESULTS", tmp_path)
    return module


def save(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Results as the scripts write them."""
    lines = [json.dumps(line) for line in [{"machine": MACHINE}, *rows]]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def peer(title: str, objects: int, frame_ms: float | None, **more: Any) -> dict[str, Any]:
    """A row of peers.jsonl."""
    measured = {"frames": 9, "frame_p50_ms": frame_ms, "peak_memory_mb": 512.4, "foreign_cores": 0.03}
    return {"title": title, "method": title, "objects": objects, **(measured if frame_ms else {}), **more}


def test_peers_are_compared_with_the_first_row(report: ModuleType, tmp_path: Path) -> None:
    """They are so per number of objects; what is not installed, failed or was never quiet has no figure."""
    rows = [
        peer("ours", 1, 100.0, turns_discarded=2),
        peer("dense", 1, 9000.0),
        peer("Cutie", 1, None, not_installed="pip install --no-deps rf-cutie"),
        peer("ours", 5, 110.0),
        peer("dense", 5, None, too_loud="other processes took up to 1.20 cores in every turn"),
        peer("Cutie", 5, None, failed="out of memory"),
    ]
    save(tmp_path, "peers", rows)
    text = report.peer_part()
    assert "at most 0.03 cores during what counts; 2 turns were discarded" in text
    assert "| ours | 100 | 1.0 | 512 | 110 | 1.0 | 512 |" in text
    assert "| dense | 9000 | 90.0 | 512 | not measured |  |  |" in text
    assert "| Cutie | not installed |  |  | failed |  |  |" in text


def test_a_table_without_results_says_so(report: ModuleType) -> None:
    assert "| not measured |" in report.peer_part()
    assert "| not measured |" in report.bench_part()


def test_the_bench_table_names_the_cost_of_objects(report: ModuleType, tmp_path: Path) -> None:
    """It marks what was measured while others worked."""
    common = {"size": 480, "context": 20, "engine": "cpu", "precision": "fp32", "isa": "avx2", "fps": 10.0}
    rows = [
        {
            **common,
            "objects": objects,
            "disturbed": objects == 20,
            "peak_memory_mb": 300.0,
            "stages_ms": {name: {"p50": ms, "p95": ms, "p99": ms} for name, ms in stages.items()},
        }
        for objects, stages in (
            (1, {"encoder": 50.0, "match": 50.0, "frame": 120.0}),
            (5, {"encoder": 50.0, "match": 54.0, "frame": 130.0}),
            (20, {"encoder": 90.0, "match": 99.0, "frame": 150.0}),
        )
    ]
    save(tmp_path, "bench", rows)
    text = report.bench_part()
    assert "5 objects cost 1.04 × 1 object (480p, context 20, cpu fp32; decoding and writing left out)." in text
    assert "| cpu fp32, avx2 | 480 | 20 | 1 | 50.0 | 50.0 | 120 / 120 / 120 | 10.0 | 300 |" in text
    assert "20 objects cost" not in text
    assert "150 / 150 / 150 | 10.0 | 300* |" in text
    assert "No round was free of other work" in text


def test_plots_of_other_data_are_refused(report: ModuleType, tmp_path: Path) -> None:
    """``--check`` fails until they are drawn again."""
    save(tmp_path, "bench", [])
    (tmp_path / "fps.svg").write_text("<svg>data 0123456789abcdef</svg>")
    with pytest.raises(SystemExit, match=r"plots of other data \(fps.svg\)"):
        report.draw_plots(check=True)


def test_constants_are_not_chosen_on_what_they_are_judged_by(report: ModuleType, tmp_path: Path) -> None:
    """Each sequence gets what is best on the others, the first of equals; settings half measured do not count."""
    scores = {"cow": (70, 60, 99), "dog": (50, 58, 0), "hen": (40, 44, None), "owl": (60, 60, 99)}
    rows = [
        {"model": "default", "size": 480, "sequence": sequence, "j_and_f": float(score)}
        | dict(
            zip(
                ("top_k", "sharpness", "object_bias", "centring", "guided"),
                (10 * (n + 1), 1.0, 0.0, 0.8 * n, 4 * n),
                strict=True,
            )
        )
        for sequence, measured in scores.items()
        for n, score in enumerate(measured)
        if score is not None
    ]
    save(tmp_path, "propagation", rows)
    text = report.propagation_part()
    assert "| cow | 70.0 | 60.0 | 20 | 1 | 0 | 0.8 | 4 |" in text
    assert "| dog | 50.0 | 50.0 | 10 | 1 | 0 | 0 | 0 |" in text
    assert "| mean | **55.0** | **52.5** |" in text
    (tmp_path / "propagation.jsonl").unlink()
    assert report.propagation_part() == "(not measured)"


def test_records_name_the_gpu(report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first GPU's name is in a file of results and in the line above its table; without a GPU both name none."""
    machine = importlib.import_module("benchmarks.machine")
    tables = importlib.import_module("benchmarks.report.tables")
    monkeypatch.setattr(machine, "RESULTS", tmp_path)

    lines = []
    for gpus in ([("NVIDIA H200", 9, 0)], []):
        monkeypatch.setattr(nvidia, "_load_driver", lambda gpus=gpus: FakeDriver(*gpus))
        machine.write("some", [{"ms": 1}])
        lines.append(tables.on(tables.header_of("some")["machine"]))
    assert lines[0] == f"{lines[1][:-1]}; NVIDIA H200."
