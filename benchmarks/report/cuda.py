"""What is known of the CUDA kernels without a GPU: the compiler's figures, a frame's work, what bounds leave of it."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.kernels.cuda import MULTIPROCESSOR_KIB, bound_match, count_match
from benchmarks.report.tables import Row, crossed, distinct, header_of, listing, part, table

BLOCK_REGISTERS, RESERVED_BYTES = 65536, 1024  # of a multiprocessor; of each block's shared memory by CUDA
# Kernels by today's name and, where an earlier commit had another variant in its place, that one's.
COMPARED = {
    "match 4 x 5": "match 4 x 3",
    "bounded match 4 x 5": "bounded match 4 x 3",
    "bounded match 1 x 16": "bounded match 2 x 16",
    "head": "head",
    "seed": "seed",
    "store": "store",
    "read out": "read out",
}


@part("cuda_kernels")
def registers_part(_: str, rows: list[Row]) -> str:
    """Registers and local memory of today's kernels."""
    today = [row for row in rows if "registers" in row and row["commit"] is None]

    def cell(row: Row | None) -> str:
        local = f" ({row['stack_bytes']})" if row and row["stack_bytes"] else ""
        return f"{row['registers']}{local}" if row else "–"

    architectures = distinct(today, "architecture")
    body = crossed("kernel", today, "kernel", architectures, cell, key=lambda row: row["architecture"])
    return f"nvcc {header_of('cuda_kernels')['nvcc']}; no GPU ran them, so times are **not measured**.\n\n{body}"


@part("cuda_kernels")
def changes_part(_: str, rows: list[Row]) -> str:
    """Kernels of each commit that was compiled, the last being today's."""
    compiled = [row for row in rows if "registers" in row]
    cells = {(row["kernel"], row["architecture"], row["commit"]): row for row in compiled}
    architectures, commits = distinct(compiled, "architecture"), distinct(compiled, "commit")
    measures: dict[str, Callable[[Row], object]] = {
        "registers": lambda row: row["registers"],
        "bytes of local memory": lambda row: row["stack_bytes"],
        "instructions": lambda row: row["instructions"],
        "for each HMMA": lambda row: " and ".join(map(str, row.get("instructions_per_hmma", ()))),
        "global loads of 16 bytes": lambda row: row["wide_loads"],
    }
    body = []
    for kernel, earlier in COMPARED.items():
        for measure, show in measures.items():
            found = [
                [cells.get((earlier if commit else kernel, each, commit)) for commit in commits]
                for each in architectures
            ]
            line = [" → ".join("–" if row is None else str(show(row)) for row in each) for each in found]
            if any(set(each) - {"0", " ", "→", "–"} for each in line):
                body.append([f"{kernel}, {measure}", *line])
    names = " → ".join(commit or "today" for commit in commits)
    return f"{names}:\n\n{table(['', *architectures], body)}"


@part("cuda_kernels")
def work_part(_: str, rows: list[Row]) -> str:
    """Operations, bytes, floors and blocks of a frame's match."""
    compiled = {
        (row["kernel"], row["architecture"]): row["registers"]
        for row in rows
        if "registers" in row and row["commit"] is None
    }

    def blocks(kernel: str, needed: dict[str, int]) -> str:
        """Blocks on a multiprocessor of each architecture; 0 where a block takes fewer queries."""
        found = []
        for architecture, kib in MULTIPROCESSOR_KIB.items():
            registers = -(-compiled[kernel, f"sm_{architecture}"] // 8) * 8 * 256
            fit = [kib * 1024 // (each + RESERVED_BYTES) for each in needed.values()]
            found.append(str(min(BLOCK_REGISTERS // registers, max(fit))))
        return ", ".join(found)

    columns: dict[str, Callable[[Row], object]] = {
        "grid, K": "{grid}, {channels}".format_map,
        "useful, GMAC": "{useful_gmac}".format_map,
        "done, GMAC": "{done_gmac}".format_map,
        "memory, MB": "{memory_mb}".format_map,
        "from cache, MB": "{loaded_from_cache_mb}".format_map,
        "a block's shared bytes": "{shared_bytes}".format_map,
        "bounded": lambda row: " or ".join(map(str, row["bounded_bytes"].values())),
        "blocks on " + ", ".join(f"sm_{each}" for each in MULTIPROCESSOR_KIB): lambda row: blocks(
            "match 4 x 5", {"": row["shared_bytes"]}
        ),
        "bounded blocks": lambda row: blocks("bounded match 4 x 5", row["bounded_bytes"]),
        "floor of useful, ms": lambda row: row["floor"]["H200"]["useful_ms"],
        "of done, ms": lambda row: row["floor"]["H200"]["done_ms"],
        "of memory, ms: H100, H200": lambda row: ", ".join(f"{gpu['memory_ms']:.3f}" for gpu in row["floor"].values()),
        "time": lambda _: "not measured",
    }
    return listing([row for row in rows if "floor" in row], columns)


@part("cuda_survivors")
def bounded_part(_: str, rows: list[Row]) -> str:
    """Operations and bytes of a frame with every product, and bounded."""
    counted = []
    for row in rows:
        height, width = row["cells"]
        work = count_match(height, width, row["channels"], context=20, radius=12.0, down=4)
        counted.append({**work, **row, **bound_match(work, row)})
    columns: dict[str, Callable[[Row], object]] = {
        "": "{sequence}, K = {channels}, d = {head}".format_map,
        "recent keys that survive, %": lambda row: f"{100 * row['recent']:.1f}",
        "of the reference, %": lambda row: f"{100 * row['reference']:.1f}",
        "every product, GMAC": "{done_gmac}".format_map,
        "bounded, GMAC": "**{bounded_gmac}**".format_map,
        "every product, MB from cache": "{loaded_from_cache_mb}".format_map,
        "bounded, MB": "**{bounded_from_cache_mb}**".format_map,
    }
    return listing(counted, columns)
