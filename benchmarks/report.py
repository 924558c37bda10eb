"""Write the tables and plots of the documents from benchmarks/results.

python benchmarks/report.py            # rewrites the parts between <!-- NAME --> and <!-- /NAME -->
python benchmarks/report.py --check    # exits 1 where they are not what the results say
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from machine import RESULTS
from report_masks import mask_training_part, pseudo_mask_part, refinement_part
from report_models import (
    ablation_part,
    accuracy_part,
    alignment_part,
    cycle_part,
    quantised_part,
    runs_part,
    training_part,
)
from report_tables import MISSING, header_of, on, read, table

from vosrt.benchmark.output import object_costs, read_rows
from vosrt.benchmark.plots import digest_of, write_plots

ROOT = Path(__file__).parents[1]


def stream_part() -> str:
    """Whole frames."""
    machine, rows = read("stream")
    body = [
        [
            f"{row['model']}, {row['engine']} {row['precision']}",
            *(f"{row[f'{stage}_p50_ms']:.1f}" for stage in ("encoder", "match", "upsample")),
            f"**{row['frame_p50_ms']:.0f}** / {row['frame_p95_ms']:.0f}",
            f"{row['fps']:.1f}",
        ]
        for row in rows
    ]
    head = ["480p, one object; milliseconds", "encoder", "match", "upsample", "frame p50 / p95", "FPS"]
    return f"{on(machine)}\n\n{table(head, body)}"


def kernel_part() -> str:
    """Match and read-out, per instruction set."""
    machine, rows = read("kernels")
    channels = sorted({row["channels"] for row in rows}, reverse=True)
    cells = {(row["path"], row["channels"]): row for row in rows}
    body = []
    for path in dict.fromkeys(row["path"] for row in rows):
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


def memory_part() -> str:
    """Resident memory of a process along one stream."""
    _, rows = read("memory")
    models = dict.fromkeys(row["model"] for row in rows)
    frames = sorted({row["memory_at_frame"] for row in rows})
    cells = {(row["model"], row["memory_at_frame"]): row["resident_mib"] for row in rows}
    body = [[model, *(f"{cells[model, frame]:.0f}" for frame in frames)] for model in models]
    return table(["resident memory at 480p, MiB", *(f"frame {frame}" for frame in frames)], body)


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
    for title in dict.fromkeys(row["title"] for row in rows):
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


def named(row: dict[str, Any]) -> str:
    """A method with its version or engine."""
    if "version" in row:
        return f"{row['title']} {row['version']}"
    return f"{row['title']} ({row['engine']})" if row["method"] == "vosrt" and "engine" in row else str(row["title"])


def why_not(row: dict[str, Any]) -> str:
    """Why there is no figure, in two words."""
    return "not installed" if "not_installed" in row else "failed" if "failed" in row else MISSING


def _stage(row: dict[str, Any], stage: str) -> str:
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
    plots = [f"![{text}](benchmarks/results/{name})" for name, text in PLOTS.items() if (RESULTS / name).exists()]
    costs = [
        f"{more['objects']} objects cost {model:.2f} × {count_of(first['objects'])} ({first['size']}p, "
        f"context {first['context']}, {first['engine']} {first['precision']}; decoding and writing left out)."
        for first, more, model, _ in object_costs(rows)
    ]
    if any(row["disturbed"] for row in rows):
        costs.append("\\* No round was free of other work.")
    return "\n\n".join([on(machine), table(head, body), *(["\n".join(costs)] if costs else []), *plots])


PLOTS = {
    "fps.svg": "Frames per second over the short side of the working frame.",
    "objects.svg": "Milliseconds per frame over the number of objects.",
    "roofline.svg": "Matching against the rates at which this machine copies and multiplies.",
}


def engine_part() -> str:
    """TensorRT engines: what it takes to build them."""
    machine, rows = read("engines")
    columns = [(row["architecture"], row["precision"]) for row in rows]
    cells = dict(zip(columns, rows, strict=True))
    architectures = list(dict.fromkeys(architecture for architecture, _ in columns))
    body = []
    for precision in dict.fromkeys(precision for _, precision in columns):
        line: list[object] = [precision]
        for architecture in architectures:
            row = cells[architecture, precision]
            line += [f"{row['build_s']:.1f}", f"{row['mb']:.1f}", "yes" if row["loaded"] else "no GPU"]
        body.append(line)
    head = ["", *(f"{name}{what}" for name in architectures for what in (", s to build", ", MB", ", loaded"))]
    if not rows:
        return f"({MISSING})"
    title = (
        f"Default bundle, {rows[0]['flavour']} {rows[0]['version']}, three profiles (480p, 720p, 1080p). {on(machine)} "
        f"Best of {len(rows[0]['build_s_all'])}; other work took up to "
        f"{max(row['foreign_cores'] for row in rows):.1f} cores meanwhile: upper bounds."
    )
    return f"{title}\n\n{table(head, body)}"


def embed_part() -> str:
    """The C++ path beside Python, as whole processes."""
    machine, rows = read("embed")
    if not rows:
        return f"({MISSING})"
    common = header_of("embed")
    body: list[list[object]] = [
        [
            f"{row['path']}, {row['precision']}",
            f"{row['step_p50_ms']:.0f}",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            f"{row['start_up_ms'] / 1e3:.2f}",
            f"{row['peak_memory_mb']:.0f}",
        ]
        for row in rows
    ]
    title = (
        f"{common['size']}p, one object, {common['frames']} frames, default bundle on OpenVINO. {on(machine)} Other "
        f"processes took at most {max(row['foreign_cores'] for row in rows):.2f} cores. `libvosrt.so` has "
        f"{common['libvosrt_bytes'] / 1e3:.0f} kB, `vos_embed` {common['program_bytes'] / 1e3:.0f} kB."
    )
    return f"{title}\n\n{table(['', 'ms a frame', '/ Python', 'start-up, s', 'peak memory, MB'], body)}"


DOCUMENTS = {
    "README.md": {
        "accuracy": accuracy_part,
        "peers": peer_part,
        "bench": bench_part,
        "stream": stream_part,
        "kernels": kernel_part,
        "memory": memory_part,
    },
    "export/README.md": {"engines": engine_part, "quantised": quantised_part},
    "runtime/README.md": {"cycle": cycle_part},
    "runtime/native/README.md": {"embed": embed_part},
    "train/README.md": {"training": training_part},
    "runtime/src/vosrt/bundles/MODELS.md": {
        "runs": runs_part,
        "accuracy": accuracy_part,
        "ablation": ablation_part,
        "refinement": refinement_part,
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
        raise SystemExit(f"benchmarks/results has plots of other data ({what}); run: python benchmarks/report.py")


def main() -> None:
    """Rewrite or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    draw_plots(check=options.check)
    for document, parts in DOCUMENTS.items():
        before = after = (ROOT / document).read_text()
        for name, part in parts.items():
            marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            if not marked.search(after):
                raise SystemExit(f"{document} has no place for {name}: expected <!-- {name} --> and <!-- /{name} -->")
            text = part()
            after = marked.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", after)
        if options.check and after != before:
            raise SystemExit(f"{document} is not what benchmarks/results say; run: python benchmarks/report.py")
        if not options.check:
            (ROOT / document).write_text(after)


if __name__ == "__main__":
    main()
