"""Write the README's tables from benchmarks/results.

python benchmarks/report.py            # rewrites the parts of README.md between <!-- NAME --> and <!-- /NAME -->
python benchmarks/report.py --check    # exits 1 where README.md is not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from machine import RESULTS

README = Path(__file__).parents[1] / "README.md"
MISSING = "not measured"


def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Machine and rows of results/NAME.jsonl; nothing where it was not run."""
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return {}, []
    machine, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return machine["machine"], rows


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def on(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    if not machine:
        return f"({MISSING})"
    sets = ", ".join(flag.replace("_", "-").upper() for flag in machine["instruction_sets"])
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB; {sets}."


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


def sequence_part() -> str:
    """Accuracy per sequence, and what bf16 changes."""
    _, rows = read("sequences")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    cells = {(row["sequence"], row["run"]): row for row in rows}
    body = []
    for sequence in dict.fromkeys(row["sequence"] for row in rows):
        chosen = [cells[sequence, run] for run in runs]
        body.append(
            [
                sequence,
                chosen[0]["frames"],
                *(f"{row['j_and_f']:.1f}" for row in chosen),
                *(f"{row['differing_pixels_percent']:.2f}" for row in chosen[1:]),
            ]
        )
    head = [
        "sequence",
        "frames",
        *(f"J&F, {run}" for run in runs),
        *(f"labels unlike fp32, {run}, %" for run in runs[1:]),
    ]
    return table(head, body)


PARTS = {"stream": stream_part, "kernels": kernel_part, "memory": memory_part, "sequences": sequence_part}


def main() -> None:
    """Rewrite or check README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    before = after = README.read_text()
    for name, part in PARTS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marked.search(after):
            raise SystemExit(f"README.md has no place for {name}: expected <!-- {name} --> and <!-- /{name} -->")
        text = part()
        after = marked.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", after)
    if options.check and after != before:
        raise SystemExit("README.md is not what benchmarks/results say; run: python benchmarks/report.py")
    if not options.check:
        README.write_text(after)


if __name__ == "__main__":
    main()
