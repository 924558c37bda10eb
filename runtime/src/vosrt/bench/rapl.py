"""Energy of the processor's packages, read through RAPL where Linux shows it in powercap."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class PackageMeter:
    """Energy between two readings of all packages, other programs' included. Made by `open_packages`."""

    def __init__(self, packages: tuple[Path, ...]) -> None:
        self._packages = packages
        self._before_uj = self._counters()

    def read_j(self) -> float:
        """Joules since the last call.

        Raises:
            OSError: a counter cannot be read any more.
        """
        now, before = self._counters(), self._before_uj
        self._before_uj = now
        spent = 0
        for package, ended, began in zip(self._packages, now, before, strict=True):
            # Counters start again at 0 when they are full, which takes minutes.
            spent += ended - began if ended >= began else ended - began + _integer(package / "max_energy_range_uj")
        return spent / 1e6

    def _counters(self) -> list[int]:
        return [_integer(package / "energy_uj") for package in self._packages]


def open_packages(root: Path = POWERCAP) -> tuple[PackageMeter | None, str]:
    """Find the packages of this machine.

    Returns:
        A meter and an empty string; or None and the reason, one sentence.
    """
    try:
        packages = tuple(each for each in sorted(root.glob("intel-rapl:*")) if _names_a_package(each))
        if not packages:
            return None, f"not available: {root} shows no packages (RAPL); virtual machines seldom do"
        return PackageMeter(packages), ""
    except PermissionError as error:
        remedy = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
        return None, f"not available: {error.filename} may not be read; permit it with: {remedy}"
    except (OSError, ValueError) as error:
        return None, f"not available: RAPL cannot be read: {error}"


def _names_a_package(zone: Path) -> bool:
    """Zones inside a package, such as its cores, are counted with it; so is AMD's, under the same name as Intel's."""
    return (zone / "name").read_text().startswith("package")


def _integer(path: Path) -> int:
    return int(path.read_text())
