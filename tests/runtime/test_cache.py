"""Where engines and decoded frames are kept."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from vosrt.cache import cache_root
from vosrt.errors import OptionError


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VOSRT_CACHE comes before the desktop's folder and the home directory; without any, the remedy is named."""
    monkeypatch.setenv("VOSRT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("VOSRT_CACHE")
    assert cache_root() == tmp_path / "xdg" / "vosrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / "home" / ".cache" / "vosrt"

    def homeless() -> NoReturn:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OptionError, match="set VOSRT_CACHE to a folder"):
        cache_root()
