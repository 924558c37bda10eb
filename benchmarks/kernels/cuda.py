"""Registers and instructions of the compiled CUDA kernels, and a frame's work beside its floor; needs no GPU.

    python -m benchmarks.kernels.cuda                # every architecture; minutes; writes results/cuda_kernels.jsonl
    python -m benchmarks.kernels.cuda -b 48a6c48     # the kernels of that commit beside today's; again for more
    python -m benchmarks.kernels.cuda --toy          # one architecture, nothing written

Per kernel and architecture: registers of a thread, bytes spilled to local memory, and, where nvdisasm is installed
(`pip install nvidia-cuda-nvdisasm`), instructions, those of tensor cores (HMMA) and loads of 16 bytes among them, and
what is issued for each HMMA where products are. Below it the multiplications, bytes and instructions of match with
every product and bounded, counted from its tiling and from what `benchmarks.kernels.survivors` found, and the times
they take at a GPU's published peaks. A published peak is a bound, not a measurement.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, ROOT, parser_of, write

NATIVE = ROOT / "runtime" / "native"
ARCHITECTURES = ("80", "86", "87", "89", "90", "120")
PEAKS = {  # dense bf16 with fp32 sums TFLOP/s, memory TB/s: NVIDIA's data sheets
    "H100 SXM": (989.0, 3.35),
    "H200": (989.0, 4.8),
}
TILE_KEYS, CHUNK, STAGES, ROW_BYTES = 128, 32, 4, 64  # match_tile.hpp, geometry.hpp
WARPS, AT_ONCE, SURVIVOR_BYTES, HEAD_STAGES = 8, 16, 12, 2  # match_tile.hpp
MULTIPROCESSOR_KIB = {"80": 164, "86": 100, "87": 164, "89": 100, "90": 228, "120": 100}  # shared memory: CUDA's guide
PATCHES = {4: (8, 16), 2: (8, 8), 1: (4, 8)}  # rows and columns of a block's queries, by warps down


def compile_for(architecture: str, commit: str | None) -> list[dict[str, Any]]:
    """Registers, spills and, with nvdisasm, instructions of every kernel, today's or those of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        native = NATIVE
        if commit is not None:
            tree = ["git", "archive", f"--output={folder}/native.tar", commit, "runtime/native"]
            subprocess.run(tree, cwd=ROOT, check=True)
            subprocess.run(["tar", "-x", "-f", "native.tar"], cwd=folder, check=True)
            native = Path(folder, "runtime", "native")
        command = ["nvcc", "-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin"]
        command += [f"-arch=sm_{architecture}", *(f"-I{native / each}" for each in ("src", "include", "cuda"))]
        command += ["-o", f"{folder}/kernels.cubin", str(native / "cuda" / "kernels.cu")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"nvcc failed for sm_{architecture}: {done.stderr.strip()}")
        code = disassemble(Path(folder, "kernels.cubin"))
    rows = []
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        re.DOTALL,
    )
    for mangled, stack, stores, loads, registers in pattern.findall(done.stderr):
        found = re.search(r"\d([A-Z][A-Za-z\d]+?Kernel)(?:ILi(\d+)ELi(\d+)E)?", mangled)
        if found is None:
            raise SystemExit(f"a kernel with a name that is not understood: {mangled}")
        name = re.sub(r"(?<!^)(?=[A-Z])", " ", found[1].removesuffix("Kernel")).lower()
        kernel = name + (f" {found[2]} x {found[3]}" if found[2] else "")
        rows.append(
            {
                "architecture": f"sm_{architecture}",
                "commit": commit,
                "kernel": kernel,
                "registers": int(registers),
                "stack_bytes": int(stack),
                "spill_store_bytes": int(stores),
                "spill_load_bytes": int(loads),
                **count_instructions(code.get(mangled, [])),
            }
        )
    return rows


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """Lines of SASS of each kernel, by mangled name: labels and instructions; empty without nvdisasm."""
    tool = shutil.which("nvdisasm")
    if tool is None:
        return {}
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    code: dict[str, list[str]] = {}
    for line in text.splitlines():
        if section := re.match(r"\.section\s+\.text\.(\w+),", line.strip()):
            lines = code.setdefault(section[1], [])
        elif label := re.match(r"(\.L_x_\d+):", line.strip()):
            lines.append(label[1])
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1])
    return code


def count_instructions(lines: list[str]) -> dict[str, Any]:
    """Instructions of a kernel, those of tensor cores, and how many a loop of products issues for each of these.

    Args:
        lines: of `disassemble`, of one kernel.
    """
    if not lines:
        return {}
    products = [index for index, line in enumerate(lines) if "HMMA" in line]
    labels = {line: index for index, line in enumerate(lines) if line.startswith(".L_x_")}
    targets = [(re.search(r"BRA.*`\((\.L_x_\d+)\)", line), index) for index, line in enumerate(lines)]
    jumps = [(labels.get(to[1], index), index) for to, index in targets if to]
    loops = sorted((begin, end) for begin, end in jumps if any(begin < index < end for index in products))
    inner = [
        (begin, end)
        for begin, end in loops
        if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in loops)
    ]
    found: dict[str, Any] = {"instructions": len(lines) - len(labels), "hmma": len(products)}
    found["wide_loads"] = sum(re.search(r"\bLDG?\.E\S*\.128", line) is not None for line in lines)
    if inner:
        found["instructions_per_hmma"] = [per_product(lines[begin : end + 1]) for begin, end in inner]
    return found


def per_product(loop: list[str]) -> float:
    """Instructions for each HMMA, in the stretches without a branch that have some: loads, addresses and products."""
    stretches: list[list[str]] = [[]]
    for line in loop:
        if line.startswith(".L_x_"):
            stretches.append([])
            continue
        stretches[-1].append(line)
        if "BRA" in line:
            stretches.append([])
    multiplying = [line for stretch in stretches if any("HMMA" in line for line in stretch) for line in stretch]
    return round(len(multiplying) / sum("HMMA" in line for line in multiplying), 2)


def half_widths(radius: float) -> list[int]:
    """Columns to either side that a circle holds, by row distance."""
    rows = range(math.ceil(radius))
    return [max(dx for dx in range(math.ceil(radius)) if dx * dx + dy * dy < radius * radius) for dy in rows]


def count_match(height: int, width: int, channels: int, *, context: int, radius: float, down: int) -> dict[str, Any]:
    """Work of one frame with one reference: the operations needed, those of the tiles, and the bytes they load.

    Args:
        channels: K.
        radius: of the circle, cells.
        down: variant of the kernel, see PATCHES.
    """
    cells, half = height * width, half_widths(radius)
    useful, halo_keys, padded_keys = cells * cells, 0, 0
    for y in range(height):
        rows = [dy for dy in range(-len(half) + 1, len(half)) if 0 <= y + dy < height]
        for x in range(width):
            useful += context * sum(min(width - 1, x + half[abs(d)]) - max(0, x - half[abs(d)]) + 1 for d in rows)
    patch_rows, patch_columns = PATCHES[down]
    patches = 0
    for top in range(0, height, patch_rows):
        for left in range(0, width, patch_columns):
            patches += 1
            last = min(top + patch_rows, height) - 1
            keys = 0
            for y in range(max(0, top - len(half) + 1), min(height, last + len(half))):
                reach = half[max(0, top - y, y - last)]
                keys += min(width, min(left + patch_columns, width) + reach) - max(0, left - reach)
            halo_keys += keys
            padded_keys += math.ceil(keys / TILE_KEYS) * TILE_KEYS
    queries = patch_rows * patch_columns
    reference_keys = math.ceil(cells / TILE_KEYS) * TILE_KEYS * patches
    tiles = queries * (context * padded_keys + reference_keys)
    padded = math.ceil(channels / CHUNK) * CHUNK
    rings = 2 if padded // CHUNK >= STAGES - 1 else STAGES
    base = queries * padded * 2 + 4 * (min(patch_rows + 2 * (len(half) - 1), height) + 1)
    queues = WARPS * (AT_ONCE - 1 + TILE_KEYS * down // WARPS) * SURVIVOR_BYTES
    heads = {head: queries * head * 2 for head in (32, 64) if head == 32 or channels >= 8 * head}
    return {
        "grid": f"{height} x {width}",
        "channels": channels,
        "slots": 1 + context,
        "queries_per_block": queries,
        "shared_bytes": base + STAGES * TILE_KEYS * ROW_BYTES + rings * TILE_KEYS * 8,
        "bounded_bytes": {
            head: base + queues + HEAD_STAGES * TILE_KEYS * (ROW_BYTES + 8) + more for head, more in heads.items()
        },
        "useful_gmac": round(useful * channels / 1e9, 2),
        "done_gmac": round(tiles * padded / 1e9, 2),
        "recent_keys": context * padded_keys,
        "reference_keys": reference_keys,
        "memory_mb": round((context + 2) * cells * padded * 2 / 1e6, 1),
        "loaded_from_cache_mb": round((context * halo_keys + patches * cells) * padded * 2 / 1e6),
    }


HMMA_MACS = 16 * 8 * 16  # of one instruction; counts above are in millions


def bound_match(
    work: dict[str, Any], found: dict[str, Any], per_hmma: dict[str, list[float]] | None = None
) -> dict[str, Any]:
    """What bounds leave of a frame's work.

    Args:
        work: of `count_match`.
        found: a row of `benchmarks.kernels.survivors` with as many channels.
        per_hmma: instructions for each HMMA in the loops of "match" and "bounded match" on one GPU, by which those of
            all warps around products are counted.
    """
    channels, head = work["channels"], found["head"]
    keys = {"recent": work["recent_keys"], "reference": work["reference_keys"]}  # of all blocks
    survivors = sum(keys[name] * found[name] for name in keys) * work["queries_per_block"] // 32  # of all warps
    gmac = (work["done_gmac"] * head / channels, survivors * 32 * channels / 1e9)
    row = {
        **{name: found[name] for name in ("bundle", "sequence", "head", "recent", "reference")},
        "bounded_gmac": round(sum(gmac), 2),
        "bounded_from_cache_mb": round((sum(keys.values()) * head + survivors * channels) * 2 / 1e6),
    }
    if per_hmma:
        parts = zip(per_hmma["bounded match"], gmac, strict=True)
        counts = {"match": per_hmma["match"][0] * work["done_gmac"], "bounded match": sum(a * b for a, b in parts)}
        row["product_instructions"] = {name: round(count * 1e3 / HMMA_MACS, 1) for name, count in counts.items()}
    return row


def floors(work: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds at each GPU's published peaks: of the useful products, of those done, of the memory's bytes."""
    return {
        name: {
            "useful_ms": round(2 * work["useful_gmac"] / tflops, 4),
            "done_ms": round(2 * work["done_gmac"] / tflops, 4),
            "memory_ms": round(work["memory_mb"] / 1e3 / terabytes, 4),
        }
        for name, (tflops, terabytes) in PEAKS.items()
    }


def main() -> None:
    """Compile, count, print, write results/cuda_kernels.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("-b", "--beside", action="append", default=[], metavar="COMMIT", help="kernels of it as well")
    options = parser.parse_args()
    toy, commits = options.toy, [*options.beside, None]
    if shutil.which("nvcc") is None:
        print("no nvcc here; install the CUDA toolkit 12.8 or newer to compile the kernels", file=sys.stderr)
        raise SystemExit(2)
    jobs = [(architecture, commit) for commit in commits for architecture in ARCHITECTURES[: 1 if toy else None]]
    with ThreadPoolExecutor(2) as pool:
        rows = [row for each in pool.map(compile_for, *zip(*jobs, strict=True)) for row in each]
    print("| kernel | " + " | ".join(dict.fromkeys(row["architecture"] for row in rows)) + " |")
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        cells = [
            f"{row['registers']}" + (f" (spills {row['spill_store_bytes']} B)" if row["spill_store_bytes"] else "")
            for row in rows
            if row["kernel"] == kernel and row["commit"] is None
        ]
        print(f"| {kernel} | " + " | ".join(cells) + " |")
    survivors = RESULTS / "cuda_survivors.jsonl"
    found = [json.loads(line) for line in survivors.read_text().splitlines()[1:]] if survivors.exists() else []
    per_hmma = {
        kernel: row["instructions_per_hmma"]
        for row in rows
        for kernel in ("match", "bounded match")
        if row["commit"] is None
        if row["architecture"] == "sm_90" and row["kernel"] == f"{kernel} 4 x 5" and "instructions_per_hmma" in row
    }
    counted: list[dict[str, Any]] = []
    for grid in ((60, 107), (135, 240)):
        for channels in (512, 256, 128, 64):
            work = count_match(*grid, channels, context=20, radius=12.0, down=4)
            counted.append({"kernel": "match", **work, "floor": floors(work)})
            if per_hmma:
                counted += [
                    {
                        "kernel": "bounded match",
                        **{name: work[name] for name in ("grid", "channels")},
                        **bound_match(work, each, per_hmma),
                    }
                    for each in found
                    if each["channels"] == channels and tuple(each["cells"]) == grid
                ]
    for each in counted:
        print(each)
    if not toy:
        version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout.split(
            "release "
        )[1]
        write("cuda_kernels", [*rows, *counted], nvcc=version.split(",")[0], measured_on_a_gpu=False)


if __name__ == "__main__":
    main()
