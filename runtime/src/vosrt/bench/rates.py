"""The process that measures the machine's rates: ``python -m vosrt.bench.rates THREADS [--toy]``."""

from __future__ import annotations

import sys
from typing import Any

from vosrt.bench.roofline import measure_rates
from vosrt.bench.worker import serve


class Rates:
    """One turn measures everything once."""

    def __init__(self, threads: int, *, toy: bool) -> None:
        self._threads = threads
        self._toy = toy
        self.latest: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Describe the measurement: the number of threads."""
        return {"threads": self._threads}

    def step(self) -> dict[str, float]:
        """Measure rates without timing a frame."""
        small = {"side": 64, "copy_mb": 1} if self._toy else {}
        self.latest = measure_rates(self._threads, **small)
        return {}


def main() -> None:
    """Serve."""
    rates = Rates(int(sys.argv[1]), toy="--toy" in sys.argv)
    serve(lambda: rates, around=lambda: rates.latest)


if __name__ == "__main__":
    main()
