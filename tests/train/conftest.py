"""Settings for all tests of training."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small convolutions spend their time waiting for threads."""
    torch.set_num_threads(1)
