"""A device that is not there is refused before any work is done."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.errors import TargetError, UsageError
from qcompile.runtime import gpu
from qcompile.runtime.device import Device, fetch


def test_unknown() -> None:
    with pytest.raises(UsageError, match="there is no device 'tpu'"):
        Device.named("tpu")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "no NVIDIA driver is installed")
    with pytest.raises(TargetError, match="no GPU to compute on: no NVIDIA driver"):
        Device.named("cuda")


def test_numpy_stays_numpy() -> None:
    array = np.ones(3)
    assert fetch(Device.named("cpu").put(array)) is array
