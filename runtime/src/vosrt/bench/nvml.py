"""Power, clocks and energy of an NVIDIA GPU, read through NVML where ``nvidia-ml-py`` and a driver are."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GpuReading:
    """Readings of the board at one moment; None stands for those it does not give.

    Attributes:
        power_w: power draw of the whole board, watts.
        energy_j: joules since the driver was loaded.
    """

    power_w: float | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    energy_j: float | None


class Gpu:
    """The first board. Made by `open_gpu`, with the module ``pynvml``, initialised."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(0)
        self.name = _text(nvml.nvmlDeviceGetName(self._handle))
        self.driver = _text(nvml.nvmlSystemGetDriverVersion())

    def read(self) -> GpuReading:
        """Read everything once."""
        nvml = self._nvml
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage)
        millijoules = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption)
        return GpuReading(
            power_w=None if milliwatts is None else milliwatts / 1e3,
            sm_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            energy_j=None if millijoules is None else millijoules / 1e3,
        )

    def _ask(self, question: Any, *arguments: Any) -> int | None:
        """Boards differ in what they tell."""
        try:
            return int(question(self._handle, *arguments))
        except self._nvml.NVMLError:
            return None


class EnergyMeter:
    """Energy between two readings of a board; shared boards count everybody's work."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._before_j = gpu.read().energy_j

    def read(self) -> dict[str, Any]:
        """The board now, with ``energy_j`` since the last call (None where it does not count)."""
        reading = self._gpu.read()
        spent = None if reading.energy_j is None or self._before_j is None else reading.energy_j - self._before_j
        self._before_j = reading.energy_j
        return {**asdict(reading), "energy_j": spent, "name": self._gpu.name}


def open_gpu() -> tuple[Gpu | None, str]:
    """Open the first board.

    Returns:
        The board and an empty string; or None and the reason, one sentence.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None, "not available: nvidia-ml-py is not installed; install it with: pip install 'vosrt[bench]'"
    try:
        nvml.nvmlInit()
        return Gpu(nvml), ""
    except nvml.NVMLError as error:
        return None, f"not available: NVML says {error}"


def _text(value: str | bytes) -> str:
    """Older versions of the module give bytes."""
    return value.decode() if isinstance(value, bytes) else value
