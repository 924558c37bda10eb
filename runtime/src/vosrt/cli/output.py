"""The folder for results: what may be written there, and when."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vosrt.errors import OutputError

VIDEO, MASKS, RLE, SUMMARY = "overlay.mp4", "masks", "masks.jsonl", "summary.json"


@dataclass(frozen=True)
class OutputFolder:
    """Where results go.

    Attributes:
        path: the folder; it need not exist.
        overwrite: results of an earlier run may be replaced.
        inputs: files and folders that are read, and must survive.
    """

    path: Path
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()

    def check(self) -> None:
        """Find out, without touching anything, whether results could be written.

        Raises:
            OutputError: it is a file, not writable, holds an input, or anything but results that may be replaced.
        """
        existing = self.path
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            above = "" if existing == self.path else f"{existing} "
            raise OutputError(f"{self.path}: {above}is a file; expected a folder for the results")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path}: {existing} is not writable; choose another folder with -o")
        if existing != self.path or not any(self.path.iterdir()):
            return
        if not self.overwrite:
            raise OutputError(
                f"{self.path}: is not empty; choose another folder or replace its results with --overwrite"
            )
        for path in self.inputs:
            if path.resolve().is_relative_to(self.path.resolve()):
                raise OutputError(f"{self.path}: holds the input {path}; choose another folder for the results")
        if not (self.path / SUMMARY).exists():
            raise OutputError(
                f"{self.path}: holds files but no {SUMMARY} of an earlier run, so nothing in it is replaced; "
                "choose another folder"
            )

    def prepare(self) -> None:
        """Create the folder, and remove the results of an earlier run if that is wanted.

        Raises:
            OutputError: it cannot be created or cleared.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.overwrite:
                self._clear()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from error

    def _clear(self) -> None:
        for name in (VIDEO, RLE, SUMMARY):
            for path in (self.path / name, self.path / f".{name}.part"):
                path.unlink(missing_ok=True)
        masks = self.path / MASKS
        if masks.is_dir():
            for path in masks.glob("*.png"):
                path.unlink()
            with suppress(OSError):  # something else is in it
                masks.rmdir()
