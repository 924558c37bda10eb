"""What the bounded search of the GPU leaves of match's work, counted without one."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.kernels.cuda import bound_match, count_match
from benchmarks.report.tables import Row, listing, part


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
