"""Write the tables and plots of the documents from benchmarks/results.

python -m benchmarks.report          # rewrites the parts between <!-- NAME --> and <!-- /NAME -->
python -m benchmarks.report --check  # exits 1 where they are not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable

from benchmarks.machine import RESULTS, ROOT
from benchmarks.report.cuda import bounded_part, changes_part, registers_part, work_part
from benchmarks.report.gpu import tables as gpu_tables
from benchmarks.report.masks import mask_training_part, pseudo_mask_part, refinement_part
from benchmarks.report.models import (
    ablation_part,
    accuracy_part,
    alignment_part,
    clicks_part,
    composite_part,
    cycle_part,
    directions_part,
    objective_part,
    propagation_part,
    quantised_part,
    reliability_part,
    runs_part,
    training_part,
)
from benchmarks.report.tables import MISSING, Row, crossed, distinct, header_of, listing, on, part, read, table
from vosrt.bench.output import object_costs, read_rows
from vosrt.bench.plots import digest_of, write_plots

HEADLINE = {
    "vosrt, default bundle": "default",
    "vosrt, fast bundle": "fast",
    "Cutie-small, bf16 autocast": None,
    "SAM 2.1-tiny": None,
    "dense PyTorch": None,
}  # rows of peers.jsonl, and which bundle's J&F stands beside each


def headline_part() -> str:
    """Five rows of the README: how good and how fast, beside other methods."""
    machine, rows = read("peers")
    means = {(row["model"], row["size"]): row["j_and_f"] for row in read("models")[1] if row["sequence"] == "mean"}
    quality = {model: figure for (model, size), figure in means.items() if size == 480}
    cells = {(row["title"], row["objects"]): row for row in rows if "frames" in row}
    body = [
        [
            title,
            f"{quality[bundle]:.1f}" if bundle in quality else "–",
            *(f"{cells[title, count]['frame_p50_ms']:.0f}" for count in (1, 5)),
            f"{cells[title, 1]['peak_memory_mb']:.0f}",
        ]
        for title, bundle in HEADLINE.items()
        if (title, 1) in cells and (title, 5) in cells
    ]
    head = ["480p, two cores", "J&F, %", "1 object, ms a frame", "5 objects, ms", "peak MB"]
    return (
        f"{table(head, body)}\n\n*Times were measured side by side in one run. {on(machine)} All at a short side of "
        f"480; at 576, which it takes unless told otherwise, the default bundle has {means['default', 576]:.1f}. "
        "J&F is the mean over eight sequences of DAVIS-2016 val that chose between checkpoints; the other methods ran "
        "with random weights, for speed only. "
        "[All figures.](benchmarks/README.md)*"
    )


@part("stream")
def stream_part(machine: str, rows: list[Row]) -> str:
    """Whole frames."""
    stages = ("encoder", "match", "upsample")
    columns: dict[str, Callable[[Row], object]] = {
        "480p, one object; milliseconds": "{model}, {engine} {precision}".format_map,
        **{stage: f"{{{stage}_p50_ms:.1f}}".format_map for stage in stages},
        "frame p50 / p95": "**{frame_p50_ms:.0f}** / {frame_p95_ms:.0f}".format_map,
        "FPS": "{fps:.1f}".format_map,
    }
    return f"{machine}\n\n{listing(rows, columns)}"


def kernel_part() -> str:
    """Match and read-out, per instruction set."""
    machine, rows = read("kernels")
    channels = sorted({row["channels"] for row in rows}, reverse=True)
    cells = {(row["path"], row["channels"]): row for row in rows}
    body = []
    for path in distinct(rows, "path"):
        line: list[object] = [path]
        for count in channels:
            row = cells.get((path, count))
            line += [f"{row['step_ms']:.0f}", f"{row['dense_over_this']:.1f}"] if row else ["", ""]
        body.append(line)
    body.append(["amx", *([MISSING, ""] * len(channels))] if not any(row["path"] == "amx" for row in rows) else [])
    head = [
        "one frame at 480p, 21 slots",
        *(title for count in channels for title in (f"K = {count}, ms", "dense / this")),
    ]
    return f"{on(machine)}\n\n{table(head, [line for line in body if line])}"


def with_encoder(row: Row) -> str:
    """What a frame with several appearance times takes, encoder included, over one with one."""
    encoder = row.get("encoder_ms")
    return f"{(encoder + row['times_ms']) / (encoder + row['bounded_ms']):.2f}" if encoder else ""


@part("bound")
def bound_part(machine: str, rows: list[Row]) -> str:
    """The bounded search beside every product, per sequence."""
    columns: dict[str, Callable[[Row], object]] = {
        "push at 480p, processor ms": lambda row: (
            f"{row['sequence']}, K = {row['channels']}"
            f"{', untrained' if row['bundle'] == 'paper settings' else ''}, {count_of(row['objects'])}, "
            f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        ),
        "every product": "{full_ms:.0f}".format_map,
        "bounded": "{bounded_ms:.0f}".format_map,
        "bounded / every": "**{ratio:.2f}**".format_map,
        "products computed, %": lambda row: f"{100 * row['survivors']:.1f}",
        "5 appearance times / 1": "{times_ratio:.2f}".format_map,
        "with the encoder": with_encoder,
    }
    return f"{machine}\n\n{listing(rows, columns)}"


@part("memory")
def memory_part(_: str, rows: list[Row]) -> str:
    """Resident memory of a process along one stream."""
    frames = sorted(set(distinct(rows, "memory_at_frame")))

    def show(row: Row | None) -> str:
        return f"{row['resident_mib']:.0f}" if row else ""

    title, name = "resident memory at 480p, MiB", "frame {}".format
    return crossed(title, rows, "model", frames, show, key=lambda row: row["memory_at_frame"], name=name)


def peer_part() -> str:
    """Other methods on the same clip, and how many times longer they take than the default bundle."""
    machine, rows = read("peers")
    counts = sorted({row["objects"] for row in rows}) or [1, 5]
    head = ["480p, median of a frame"]
    for count in counts:
        head += [f"{count_of(count)}, ms", "/ ours", "peak MB"]
    if not rows:
        return f"{on(machine)}\n\n{table(head, [[MISSING, *[''] * 3 * len(counts)]])}"
    cells = {(row["title"], row["objects"]): row for row in rows}
    first = rows[0]["title"]
    body = []
    for title in distinct(rows, "title"):
        line: list[object] = [named(cells[title, counts[0]])]
        for count in counts:
            row, base = cells[title, count], cells[first, count]
            if "frames" not in row:
                line += [why_not(row), "", ""]
                continue
            ratio = f"{row['frame_p50_ms'] / base['frame_p50_ms']:.1f}" if "frames" in base else ""
            line += [f"{row['frame_p50_ms']:.0f}", ratio, f"{row['peak_memory_mb']:.0f}"]
        body.append(line)
    foreign = [row["foreign_cores"] for row in rows if "frames" in row]
    discarded = sum(row.get("turns_discarded", 0) for row in rows)
    quiet = (
        f"Other processes took at most {max(foreign):.2f} cores during what counts; {discarded} turns were discarded."
        if foreign
        else ""
    )
    return f"{on(machine)} {quiet}\n\n{table(head, body)}"


def count_of(objects: int) -> str:
    """Objects in words."""
    return "1 object" if objects == 1 else f"{objects} objects"


def named(row: Row) -> str:
    """A method with its version or engine."""
    if "version" in row:
        return f"{row['title']} {row['version']}"
    return f"{row['title']} ({row['engine']})" if row["method"] == "vosrt" and "engine" in row else str(row["title"])


def why_not(row: Row) -> str:
    """Say in two words why a figure is missing."""
    return "not installed" if "not_installed" in row else "failed" if "failed" in row else MISSING


def _stage(row: Row, stage: str) -> str:
    """The median of a stage; frames that a GPU takes whole have none."""
    return f"{row['stages_ms'][stage]['p50']:.1f}" if stage in row["stages_ms"] else "–"


def bench_part() -> str:
    """vos-bench: cost of objects, resolution and context; the plots beside it."""
    machine, rows = read("bench")
    head = ["engine, core", "size", "context", "objects", "encoder", "match", "frame p50 / p95 / p99, ms", "FPS", "MB"]
    if not rows:
        return f"{on(machine)}\n\n{table(head, [[MISSING, *[''] * (len(head) - 1)]])}"
    body = [
        [
            f"{row['engine']} {row['precision']}, {row['isa']}",
            row["size"],
            row["context"],
            row["objects"],
            *(_stage(row, stage) for stage in ("encoder", "match")),
            " / ".join(f"{row['stages_ms']['frame'][percent]:.0f}" for percent in ("p50", "p95", "p99")),
            f"{row['fps']:.1f}",
            f"{row['peak_memory_mb']:.0f}{'*' if row['disturbed'] else ''}",
        ]
        for row in rows
    ]
    plots = [f"![{text}](results/{name})" for name, text in PLOTS.items() if (RESULTS / name).exists()]
    costs = [
        f"{more['objects']} objects cost {model:.2f} × {count_of(first['objects'])} ({first['size']}p, "
        f"context {first['context']}, {first['engine']} {first['precision']}; decoding and writing left out)."
        for first, more, model, _ in object_costs(rows)
    ]
    if any(row["disturbed"] for row in rows):
        costs.append("\\* No round was free of other work.")
    return "\n\n".join([on(machine), table(head, body), *(["\n".join(costs)] if costs else []), *plots])


def devices_part() -> str:
    """Lines that people sent from their machines: vos-bench --submit-row."""
    path = RESULTS / "devices.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    head = [
        "processor or GPU, cores",
        "bundle",
        "engine, core",
        "size",
        "frame p50 / p95 / p99, ms",
        "FPS",
        "J a frame",
    ]
    body = [
        [
            f"{row['gpu'] or row['processor']}, {row['threads']}",
            row["bundle"],
            f"{row['engine']} {row['precision']}, {row['isa']}",
            f"{row['size']}p, {count_of(row['objects'])}",
            " / ".join(f"{row['frame_ms'][percent]:.0f}" for percent in ("p50", "p95", "p99")),
            f"{row['fps']:.1f}{'*' if row['disturbed'] else ''}",
            "–" if row["energy_per_frame_j"] is None else f"{row['energy_per_frame_j']:.3g}",
        ]
        for row in sorted(rows, key=lambda row: -row["fps"])
    ]
    marked = "\n\n\\* Other processes ran." if any(row["disturbed"] for row in rows) else ""
    return table(head, body or [[MISSING, *[""] * (len(head) - 1)]]) + marked


PLOTS = {
    "fps.svg": "Frames per second over the short side of the working frame.",
    "objects.svg": "Milliseconds per frame over the number of objects.",
    "roofline.svg": "Matching against the rates at which this machine copies and multiplies.",
}


@part("engines")
def engine_part(machine: str, rows: list[Row]) -> str:
    """TensorRT engines: what it takes to build them."""
    cells = {(row["architecture"], row["precision"]): row for row in rows}
    architectures = distinct(rows, "architecture")
    body = []
    for precision in distinct(rows, "precision"):
        line: list[object] = [precision]
        for architecture in architectures:
            row = cells[architecture, precision]
            line += [f"{row['build_s']:.1f}", f"{row['mb']:.1f}", "yes" if row["loaded"] else "no GPU"]
        body.append(line)
    head = ["", *(f"{name}{what}" for name in architectures for what in (", s to build", ", MB", ", loaded"))]
    title = (
        f"Default bundle, {rows[0]['flavour']} {rows[0]['version']}, three profiles (480p, 720p, 1080p). {machine} "
        f"Best of {len(rows[0]['build_s_all'])}; other work took up to "
        f"{max(row['foreign_cores'] for row in rows):.1f} cores meanwhile: upper bounds."
    )
    return f"{title}\n\n{table(head, body)}"


@part("embed")
def embed_part(machine: str, rows: list[Row]) -> str:
    """The C++ path beside Python, as whole processes."""
    common = header_of("embed")
    columns: dict[str, Callable[[Row], object]] = {
        "": "{path}, {precision}".format_map,
        "ms a frame": "{step_p50_ms:.0f}".format_map,
        "/ Python": lambda row: f"{row['ratio']:.2f}" if "ratio" in row else "",
        "start-up, s": lambda row: f"{row['start_up_ms'] / 1e3:.2f}",
        "peak memory, MB": "{peak_memory_mb:.0f}".format_map,
    }
    title = (
        f"{common['size']}p, one object, {common['frames']} frames, default bundle on OpenVINO. {machine} Other "
        f"processes took at most {max(row['foreign_cores'] for row in rows):.2f} cores. `libvosrt.so` has "
        f"{common['libvosrt_bytes'] / 1e3:.0f} kB, `vos_embed` {common['program_bytes'] / 1e3:.0f} kB."
    )
    return f"{title}\n\n{listing(rows, columns)}"


@part("large_frames")
def large_part(machine: str, rows: list[Row]) -> str:
    """vos-run on large frames beside 480p plus decoding."""
    common = header_of("large_frames")
    columns: dict[str, Callable[[Row], object]] = {
        "": "{size}p".format_map,
        "processor time, ms a frame": "{work_ms}".format_map,
        "decoding alone, ms": "{decode_ms}".format_map,
        "/ 480p + decoding, %": "{work}".format_map,
        "ms a frame": "{frame_ms}".format_map,
        "speed, %": "{speed}".format_map,
        "of the slowest stage's rate, %": "{pace}".format_map,
    }
    title = f"{common['bundle'].capitalize()} bundle, {common['objects']} objects, {common['frames']} frames."
    return f"{title} {machine}\n\n{listing(rows, columns)}"


@part("live")
def live_part(machine: str, rows: list[Row]) -> str:
    """vos-run on a live camera to which things happen."""
    columns: dict[str, Callable[[Row], object]] = {
        "short side": "{size}".format_map,
        "pictures a second": "{fps}".format_map,
        "seen": "{seen}".format_map,
        "written": "{written}".format_map,
        "reconnects": "{reconnects}".format_map,
        "away / dark, s": "{away_s:.0f} / {dark_s:.0f}".format_map,
        "latency p50 / p95, ms": lambda row: f"{row['latency_ms']['p50']:.0f} / {row['latency_ms']['p95']:.0f}",
        "memory after a fifth / at the end, MiB": "{memory_fifth_mib} / {memory_end_mib}".format_map,
    }
    events = ", ".join(f"{count} × {event}" for event, count in rows[0]["events"].items())
    busy = max(row["foreign_cores"] for row in rows)
    title = f"Bundle `{rows[0]['bundle']}`; {events}. {machine} Other processes took {busy:.1f} cores meanwhile."
    return f"{title}\n\n{listing(rows, columns)}"


@part("batch")
def batch_part(machine: str, rows: list[Row]) -> str:
    """vos-run batch with one and two processes."""
    columns: dict[str, Callable[[Row], object]] = {
        "": "{what}".format_map,
        "frames a second": "{fps}".format_map,
        "/ 1 process, 1 thread": lambda row: f"{row['fps'] / rows[0]['fps']:.2f} ×",
        "processor time, ms a frame": "{cpu_ms}".format_map,
    }
    title = "{clips} clips of {frames} frames, {bundle} bundle, start of the processes included.".format_map(rows[0])
    return f"{title} {machine}\n\n{listing(rows, columns)}"


@part("attack")
def attack_part(machine: str, rows: list[Row]) -> str:
    """Return the table of attacks and their outcomes."""
    columns: dict[str, Callable[[Row], object]] = {
        "attack": "{attack}".format_map,
        "survived before": lambda row: row["before"] or "not counted",
        "tried": "{tried}".format_map,
        "survived": "{survived}".format_map,
    }
    return f"{machine}\n\n{listing(rows, columns)}"


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    ".github/SECURITY.md": {"attack": attack_part},
    "README.md": {"headline": headline_part},
    "benchmarks/README.md": {
        "accuracy": accuracy_part,
        "peers": peer_part,
        "bench": bench_part,
        "devices": devices_part,
        "stream": stream_part,
        "kernels": kernel_part,
        "bound": bound_part,
        "memory": memory_part,
        "large": large_part,
        "batch": batch_part,
        "live": live_part,
        "clicks": clicks_part,
        "gpu": lambda: gpu_tables(RESULTS / "gpu.jsonl"),
    },
    "export/README.md": {"engines": engine_part, "quantised": quantised_part},
    "runtime/docs/reference/evaluation.md": {"cycle": cycle_part},
    "runtime/docs/reference/marks.md": {"directions": directions_part},
    "runtime/native/README.md": {"embed": embed_part},
    "runtime/native/cuda/README.md": {
        "registers": registers_part,
        "changes": changes_part,
        "work": work_part,
        "bounded": bounded_part,
    },
    "train/README.md": {"training": training_part, "objectives": objective_part},
    "runtime/src/vosrt/bundles/MODELS.md": {
        "runs": runs_part,
        "accuracy": accuracy_part,
        "ablation": ablation_part,
        "refinement": refinement_part,
        "propagation": propagation_part,
        "composites": composite_part,
        "reliability": reliability_part,
        "alignment": alignment_part,
        "pseudo_masks": pseudo_mask_part,
        "mask_training": mask_training_part,
    },
}


def draw_plots(*, check: bool) -> None:
    """Draw the plots of results/bench.jsonl beside it, or see to it that they are of these data."""
    path = RESULTS / "bench.jsonl"
    if not path.exists():
        return
    header, rows = read_rows(path)
    if not check:
        write_plots(RESULTS, header, rows)
        return
    stale = [
        name
        for name in PLOTS
        if (RESULTS / name).exists() and digest_of(header, rows) not in (RESULTS / name).read_text()
    ]
    if stale or not any((RESULTS / name).exists() for name in PLOTS):
        what = ", ".join(stale) or "none"
        raise SystemExit(f"benchmarks/results has plots of other data ({what}); run: python -m benchmarks.report")


def main() -> None:
    """Rewrite or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    draw_plots(check=options.check)
    for document, parts in DOCUMENTS.items():
        before = after = (ROOT / document).read_text()
        for name, write in parts.items():
            place = re.search(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", after, re.DOTALL)
            if place is None:
                raise SystemExit(f"{document} has no place for {name}: expected <!-- {name} --> and <!-- /{name} -->")
            after = f"{after[: place.end(1)]}{write()}\n{after[place.start(2) :]}"
        if options.check and after != before:
            raise SystemExit(f"{document} is not what benchmarks/results say; run: python -m benchmarks.report")
        if not options.check:
            (ROOT / document).write_text(after)


if __name__ == "__main__":
    main()
