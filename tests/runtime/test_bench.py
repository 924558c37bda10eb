"""vos-bench: what is measured, what counts, what is suggested; timings themselves are not asserted."""

from __future__ import annotations

import itertools
import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosrt.bench import machine, runner
from vosrt.bench.budget import command_for, fitting
from vosrt.bench.cases import Case, Grid, integers
from vosrt.bench.clip import PERIOD, mark_objects, render, size_of
from vosrt.bench.device_row import add_row, device_row
from vosrt.bench.machine import Watch
from vosrt.bench.nvml import EnergyMeter, open_gpu
from vosrt.bench.output import findings, object_costs, read_rows, tables_of, write_rows
from vosrt.bench.plots import digest_of, write_plots
from vosrt.bench.rapl import open_packages
from vosrt.bench.roofline import match_work
from vosrt.bench.worker import Turn, Worker, WorkerFailedError
from vosrt.cli import measure
from vosrt.cli.bench import main
from vosrt.console import show
from vosrt.errors import InputError, OptionError
from vosrt.types import PropagationOptions


def row(size: int = 480, objects: int = 1, context: int = 20, frame_ms: float = 100.0, **more: Any) -> dict[str, Any]:
    """A row as the runner makes them."""
    stages = {"decode": 5.0, "encoder": 30.0, "match": frame_ms - 45.0, "write": 10.0, "frame": frame_ms}
    return {
        "size": size,
        "objects": objects,
        "context": context,
        "engine": "cpu",
        "precision": "fp32",
        "asked_precision": "auto",
        "asked_bundle": "default",
        "isa": "avx2",
        "threads": 2,
        "stages_ms": {name: {"p50": ms, "p95": ms + 1, "p99": ms + 2} for name, ms in stages.items()},
        "fps": 1e3 / frame_ms,
        "peak_memory_mb": 300.0,
        "foreign_cores": 0.01,
        "disturbed": False,
        "match_gflop": 46.0,
        "match_gb": 0.15,
        **more,
    }


def test_cases_that_take_turns_differ_in_objects_alone() -> None:
    """Ratios over objects are taken within a group, whose members are measured side by side."""
    groups = Grid(size=(240, 480), objects=(1, 5), engine=("cpu", "openvino")).groups()
    assert len(groups) == 4
    for group in groups:
        assert [case.objects for case in group] == [1, 5]
        assert len({(case.size, case.engine) for case in group}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (8,)}, "--size is 8; expected 16 to 4096"),
        ({"objects": (0,)}, "--objects is 0; expected 1 to 255"),
        ({"context": (None, -1)}, "--context is -1; expected 0 to 1024"),
        ({"isa": ("sse",)}, "--isa is 'sse'; expected some of auto, generic"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    """They are refused before anything is measured."""
    with pytest.raises(OptionError) as caught:
        Grid(**values).groups()
    assert message in str(caught.value)


def test_numbers_are_read_from_lists() -> None:
    """Commas separate them; anything else is refused in words."""
    assert integers("--size", "240,480") == [240, 480]
    with pytest.raises(OptionError, match="--size is '240;480'; expected whole numbers separated by commas"):
        integers("--size", "240;480")


def test_the_clip_can_be_repeated_without_a_jump() -> None:
    """After a period the camera is where it began; within it, it moves."""
    assert size_of(480) == (480, 854)
    first = render(48, 86, 0)
    assert np.array_equal(first, render(48, 86, PERIOD))
    assert not np.array_equal(first, render(48, 86, PERIOD // 4))


@pytest.mark.parametrize("count", [1, 2, 5, 255])
def test_every_object_has_pixels(count: int) -> None:
    """Objects neither overlap nor vanish."""
    mask = mark_objects(480, 854, count)
    assert np.array_equal(np.unique(mask), np.arange(count + 1))


def test_objects_without_room_are_refused() -> None:
    """They are not replaced by fewer objects."""
    with pytest.raises(OptionError, match="200 objects in a frame of 28 x 16"):
        mark_objects(16, 28, 200)


def test_the_work_of_matching_is_counted_pair_by_pair() -> None:
    """A count of all pairs of cells of a small grid agrees."""
    options = PropagationOptions(context=3, radius=2.5)
    cells = list(itertools.product(range(5), range(7)))
    local = sum((y - v) ** 2 + (x - u) ** 2 < 2.5**2 for (y, x), (v, u) in itertools.product(cells, cells))
    pairs = len(cells) ** 2 + 3 * local
    work = match_work((5, 7), 16, options=options, isa="avx2")
    assert work.flop == 2 * 16 * pairs
    assert work.bytes == 4 * 16 * len(cells) * 5
    assert match_work((5, 7), 16, options=options, isa="amx").bytes == work.bytes / 2


def test_stages_keep_the_order_of_a_frame() -> None:
    """Stages that do not exist are left out; one that this version does not know comes before the write."""
    more = {"upsample": 1.0, "refine": 1.0, "decode": 3.0, "write": 1.0, "frame": 9.0}
    summary = runner.summarise([{"encoder": 2.0 + t, "sharpen": 1.0, **more} for t in range(101)])
    assert list(summary) == ["decode", "encoder", "refine", "upsample", "sharpen", "write", "frame"]
    assert summary["encoder"] == {"p50": 52.0, "p95": 97.0, "p99": 101.0}


def scripted(foreign_cores: list[float]) -> Callable[[], Turn]:
    """Takes turns in which others took this many cores."""
    script = iter(foreign_cores)
    return lambda: Turn([{"frame": 1.0}], next(script), 100.0, {})


def test_disturbed_turns_are_repeated_and_not_counted() -> None:
    """Every worker goes on until it has its quiet rounds, and no longer."""
    workers = [scripted([0.0, 0.1]), scripted([0.9, 0.15, 0.2, 0.0])]
    first, second = runner.take_turns(workers, rounds=2, quiet_cores=0.15)
    assert [turn.foreign_cores for turn in first.quiet] == [0.0, 0.1]
    assert [turn.foreign_cores for turn in second.quiet] == [0.15, 0.0]
    assert [turn.foreign_cores for turn in second.disturbed] == [0.9, 0.2]


@pytest.mark.parametrize(("deadline_s", "turns"), [(math.inf, 4), (0.0, 2)])
def test_a_machine_that_is_never_quiet_ends_too(deadline_s: float, turns: int) -> None:
    """It ends after twice the rounds or at the deadline, and nothing counts."""
    (seen,) = runner.take_turns([scripted([0.5] * 9)], rounds=2, quiet_cores=0.15, deadline_s=deadline_s)
    assert (len(seen.quiet), len(seen.disturbed)) == (0, turns)


def test_the_watch_counts_what_others_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts busy time of other processes per second, -1 where the system counts nothing."""
    readings = iter([(10.0, 100.0, 7.0), (14.0, 109.0, 10.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.5)])
    monkeypatch.setattr(machine, "_times", lambda: next(readings))
    with Watch() as watch:
        pass
    assert watch.foreign_cores == (9 - 3) / 4
    with Watch() as blind:
        pass
    assert blind.foreign_cores == -1


def script(tmp_path: Path, body: str) -> list[str]:
    """A worker with this code."""
    path = tmp_path / "task.py"
    path.write_text(f"from vosrt.bench.worker import serve\nfrom vosrt.errors import OptionError\n{body}")
    return [sys.executable, str(path)]


def test_a_worker_answers_although_its_libraries_print(tmp_path: Path) -> None:
    """Threads reach it by the environment; what it prints does not disturb the protocol."""
    body = """
import os
class Task:
    def describe(self): print("hello"); return {"threads": os.environ["OMP_NUM_THREADS"], "isa": os.environ["ISA"]}
    def step(self): os.write(1, b"a library writes"); return {"frame": 1.5}
serve(Task, around=lambda: {"gpu": 1})
"""
    with Worker(script(tmp_path, body), threads=3, environment={"ISA": "x"}) as worker:
        assert worker.description == {"threads": "3", "isa": "x"}
        turn = worker.turn(4)
    assert turn.frames == [{"frame": 1.5}] * 4
    assert turn.more == {"gpu": 1}
    assert turn.peak_memory_mb is None or turn.peak_memory_mb > 5


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        ("def task(): raise OptionError('no such engine')\nserve(task)", "no such engine", "OptionError"),
        ("def task(): raise ZeroDivisionError('deep down')\nserve(task)", "ended with code 1: .*deep down", ""),
    ],
)
def test_a_worker_that_cannot_start_says_why(tmp_path: Path, body: str, message: str, kind: str) -> None:
    """An error of ours keeps its kind; a crash gives its last line."""
    with pytest.raises(WorkerFailedError, match=message) as caught:
        Worker(script(tmp_path, body), threads=1)
    assert caught.value.kind == kind


def test_what_fits_a_budget_is_the_best_of_its_kind() -> None:
    """Larger settings come first; one that another at least as good and faster beats is left out."""
    small, large, slow = row(240, frame_ms=50), row(480, frame_ms=98), row(480, context=10, frame_ms=98.5)
    beyond = row(720, frame_ms=99.5)  # its median fits, its p95 does not
    assert fitting([small, beyond, slow, large], 100) == [large, small]
    assert fitting([beyond, large], 60) == []


def test_a_command_names_its_bundle() -> None:
    """Unless it is the one that vos-run takes by itself; a folder with a space is quoted."""
    assert "--bundle" not in command_for(row())
    assert "--bundle 'my bundles/slim' --size 480" in command_for(row(asked_bundle="my bundles/slim"))


def test_what_bounds_spared_is_said() -> None:
    """Where a search was bounded; a full one says nothing."""
    bounded = {"head": 32, "survivors": 0.0331, "bytes": 1}
    assert findings([row(memory={**bounded, "survivors": 1.0})]) == []
    (said,) = findings([row(memory=bounded)])
    assert said.endswith("3.3 % of the products that heads of 32 channels bounded were computed in full")


def test_objects_are_compared_with_the_fewest() -> None:
    """They are compared within one quiet setting, without decoding and writing."""
    rows = [row(objects=5, frame_ms=115), row(objects=1, frame_ms=100), row(size=240, frame_ms=50)]
    ((first, more, model, frame),) = object_costs(rows)
    assert (first["objects"], more["objects"]) == (1, 5)
    assert model == pytest.approx(100 / 85)
    assert frame == pytest.approx(1.15)
    assert "5 objects cost 1.18 × 1 object" in findings(rows)[0]
    assert object_costs([row(objects=5, disturbed=True), row(objects=1)]) == []


def test_disturbed_rows_are_named() -> None:
    """A figure that was not measured in quiet says so."""
    assert "no quiet turn for 1 of 2 settings" in findings([row(), row(size=240, disturbed=True)])[-1]


def test_rows_come_back_and_fill_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each engine has a table of frames and one of stages, whole in 80 columns."""
    rows = [row(), row(objects=5)]
    write_rows(tmp_path / "bench.jsonl", {"machine": {}}, rows)
    assert read_rows(tmp_path / "bench.jsonl") == ({"machine": {}}, rows)
    monkeypatch.setenv("COLUMNS", "80")
    show(*tables_of([*rows, row(engine="openvino", precision="bf16")]))
    text = capsys.readouterr().out
    assert "…" not in text
    assert "openvino bf16, core" in text
    assert [line.split()[3:7] for line in text.splitlines() if "decode" in line] == [
        ["decode", "encoder", "match", "write"]
    ] * 2


def test_plots_show_what_varies(tmp_path: Path) -> None:
    """Each names its data; an axis with one value gives no plot."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'vosrt[bench]'")
    header = {"rates": {"copy_gb_s": 20.0, "gemm_fp32_gflop_s": 300.0, "gemm_bf16_gflop_s": None}}
    rows = [row(), row(objects=5)]
    assert [path.name for path in write_plots(tmp_path, header, rows)] == ["objects.svg", "roofline.svg"]
    svg = (tmp_path / "roofline.svg").read_text()
    assert digest_of(header, rows) in svg
    assert "300 GFLOP/s" in svg
    assert "bf16" not in svg
    (again,) = write_plots(tmp_path, {}, [*rows, row(240), row(240, objects=5)])[:1]
    assert "frames per second" in again.read_text()


class FakeNvml(types.ModuleType):
    """NVML of a board that counts energy or does not."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        """As in the real module."""

    def __init__(self, *, broken: bool = False, counts_energy: bool = True) -> None:
        super().__init__("pynvml")
        self.broken, self.counts_energy = broken, counts_energy
        self.millijoules = 5_000

    def nvmlInit(self) -> None:  # noqa: N802 (NVML's name, as below)
        if self.broken:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"board {index}"

    def nvmlDeviceGetName(self, handle: str) -> bytes:  # noqa: N802
        return b"NVIDIA Test"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "555.1"

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 321_500

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.counts_energy:
            raise self.NVMLError("Not Supported")
        self.millijoules += 2_000
        return self.millijoules


def test_power_clocks_and_energy_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in watts, MHz and joules since the last reading."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    gpu, reason = open_gpu()
    assert gpu is not None
    assert reason == ""
    assert (gpu.name, gpu.driver) == ("NVIDIA Test", "555.1")
    reading = EnergyMeter(gpu).read()
    assert reading["energy_j"] == 2.0
    assert (reading["power_w"], reading["sm_clock_mhz"], reading["memory_clock_mhz"]) == (321.5, 1980, 2619)


def test_a_board_that_does_not_count_energy_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(counts_energy=False))
    gpu, _ = open_gpu()
    assert gpu is not None
    assert EnergyMeter(gpu).read()["energy_j"] is None


@pytest.mark.parametrize(
    ("module", "reason"),
    [(None, "pip install 'vosrt[bench]'"), (FakeNvml(broken=True), "NVML says Driver Not Loaded")],
)
def test_where_there_is_no_gpu_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType | None, reason: str
) -> None:
    """The module or the driver may be missing."""
    monkeypatch.setitem(sys.modules, "pynvml", module)
    gpu, why_not = open_gpu()
    assert gpu is None
    assert why_not.startswith("not available")
    assert reason in why_not


QUICK = ["--size", "64", "--context", "2", "--engine", "fake", "--threads", "1", "--rounds", "1", "--frames", "2"]
QUICK += ["--seconds", "0", "--warm-up", "0", "--quiet-cores", "1000"]


@pytest.fixture
def quick_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates on tiny arrays."""
    monkeypatch.setattr(measure, "measure_rates", lambda *given: runner.measure_rates(*given, toy=True))


@pytest.mark.usefixtures("quick_rates")
def test_vos_bench_measures_every_setting(
    tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each setting has a process and all stages; what cannot run is left out with its reason."""
    code = main([*QUICK, "--objects", "1,3", "--isa", "auto,amx-less"])
    assert code == 2  # a typing error is found before anything runs
    assert main([*QUICK, "--json"]) == 0  # the default bundle, whose cells have parts
    capsys.readouterr()
    quick = [*QUICK, "--bundle", str(fake_bundle)]  # its cells are too few for 255 objects
    code = main([*quick, "--objects", "1,3,255", "--json", "--budget-ms", "1e6", "-o", str(tmp_path), "--no-plot"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    header, one, three, advice = (json.loads(line) for line in shown.out.splitlines())
    assert header["machine"]["cores"] >= 1
    assert header["rates"]["copy_gb_s"] > 0
    assert (one["objects"], three["objects"]) == (1, 3)
    assert list(one["stages_ms"]) == ["decode", "resize", "encoder", "match", "upsample", "write", "frame"]
    assert one["frames"] == 2
    assert one["frame"] == [64, 114]
    assert one["memory"]["survivors"] > 0  # seeds are computed twice, which a toy frame shows: it may exceed 1
    assert "left out: 64p, 255 objects" in shown.err
    assert advice["fits"][0].startswith(
        f"vos-run SOURCE --mask FIRST.png -o OUT --bundle {fake_bundle} --size 64 --context 2"
    )
    assert read_rows(tmp_path / "bench.jsonl") == (header, [one, three])


@pytest.mark.usefixtures("quick_rates")
def test_a_budget_that_nothing_fits_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says so, and the fastest setting is named. A budget by itself tries several settings."""
    asked: list[Case] = []

    def measured(cases: list[Case], *_: object) -> tuple[list[dict[str, Any]], list[WorkerFailedError]]:
        asked.extend(cases)
        return [row(case.size, case.objects, case.context or 0, frame_ms=case.size / 4) for case in cases], []

    monkeypatch.setattr(measure, "measure_group", measured)
    assert main(["--budget-ms", "60"]) == 1
    assert "nothing measured fits 60 ms: the fastest takes 61.0 ms (p95)" in capsys.readouterr().out
    assert len(set(asked)) == 3 * 3 * 2


@pytest.mark.usefixtures("quick_rates")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; expected 1 or more"),
        (["--engine", "gpu"], "--engine is 'gpu'; expected one of auto, tensorrt"),
        (["--budget-ms", "nan"], "--budget-ms is nan; expected more than 0 milliseconds"),
        (["--clip", "0"], "a camera sets its own pace"),
        (["--clip", "missing.mp4"], "missing.mp4"),
        ([*QUICK, "--bundle", "missing"], "no such bundle: missing"),
        (["--nonsense"], "see vos-bench --help"),
        (["--submit-row", "d.jsonl", "--objects", "1,5"], "--submit-row is for one setting; 2 are to be measured"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["bench.jsonl", "roofline.svg"])
def test_a_file_of_the_user_is_refused_before_measuring(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert main(["-o", str(tmp_path)]) == 2
    assert f"{name}: is not a file that this run wrote" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_plots_without_matplotlib_are_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the command that installs it."""

    def never(*_: object) -> None:
        pytest.fail("measured")

    unmeasured: Callable[..., None] = never
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(measure, "measure_rates", unmeasured)
    assert main([*QUICK, "-o", str(tmp_path / "out")]) == 2
    assert "matplotlib, which draws the plots, is not installed; install it with: pip install 'vosrt[bench]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def packages_of(root: Path, *counters_uj: int, name: str = "package-0") -> None:
    """Write zones as Linux shows them: one with the name of a package per counter, each with cores inside it."""
    for index, counter in enumerate(counters_uj):
        for zone, title in ((f"intel-rapl:{index}", name), (f"intel-rapl:{index}:0", "core")):
            (root / zone).mkdir(parents=True, exist_ok=True)
            (root / zone / "name").write_text(f"{title}\n")
            (root / zone / "energy_uj").write_text(f"{counter}\n")
            (root / zone / "max_energy_range_uj").write_text("262143328850\n")


def test_energy_of_all_packages_is_read(tmp_path: Path) -> None:
    """Cores inside a package are counted with it; a counter that began again has wrapped."""
    packages_of(tmp_path, 1_000_000, 262_143_000_000)
    meter, why_not = open_packages(tmp_path)
    assert meter is not None
    assert why_not == ""
    packages_of(tmp_path, 3_500_000, 171_150)
    assert meter.read_j() == pytest.approx(2.5 + 0.5)
    assert meter.read_j() == 0


def test_where_energy_cannot_be_read_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_packages(tmp_path / "none") == (
        None,
        f"not available: {tmp_path / 'none'} shows no packages (RAPL); virtual machines seldom do",
    )
    packages_of(tmp_path, 1, name="psys")
    assert open_packages(tmp_path)[0] is None
    packages_of(tmp_path, 1)
    denied = PermissionError(13, "Permission denied", str(tmp_path / "intel-rapl:0/energy_uj"))
    monkeypatch.setattr("vosrt.bench.rapl._integer", lambda path: (_ for _ in ()).throw(denied))
    meter, why_not = open_packages(tmp_path)
    assert meter is None
    assert "energy_uj may not be read; permit it with: sudo chmod a+r" in why_not


def test_a_row_is_added_to_the_table_of_devices(tmp_path: Path) -> None:
    """One line with the machine and the percentiles of a frame; other files are refused and stay."""
    machine = {"processor": "Test", "cores": 2, "memory_gib": 8.0, "instruction_sets": ["avx2"]}
    row = {"device": "cpu", "size": 480, "objects": 1, "fps": 10.0, "disturbed": False}
    row |= {"stages_ms": {"frame": {"p50": 100.0, "p95": 120.0, "p99": 130.0}}}
    line = device_row({"machine": machine, "gpu": "not available"}, row)
    table = tmp_path / "devices.jsonl"
    add_row(table, line)
    add_row(table, line | {"fps": 11.0})
    first, second = (json.loads(each) for each in table.read_text().splitlines())
    assert (first, second["fps"]) == (line, 11.0)
    assert first["frame_ms"] == {"p50": 100.0, "p95": 120.0, "p99": 130.0}
    assert (first["processor"], first["energy_per_frame_j"]) == ("Test", None)
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(InputError, match="is no table of devices"):
        add_row(tmp_path / "notes.txt", line)
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
