"""What is large lies in files: the same numbers, read-only, and nothing left behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qcompile.compiler import scratch
from qcompile.compiler.formats import INT8
from qcompile.compiler.params import QuantParams
from qcompile.compiler.plan import QuantizedWeight, WeightStore
from qcompile.compiler.scratch import in_file, on_disk
from qcompile.compiler.specs import PerChannel, QuantSpec
from qcompile.errors import OutputError

LARGE = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int32, ml_dtypes.int4, ml_dtypes.float8_e4m3fn])
def test_large_arrays_lie_in_files_and_keep_their_numbers(dtype: type) -> None:
    array = (LARGE * 2).astype(dtype)
    kept = on_disk(array)
    assert in_file(kept)
    assert type(kept) is np.ndarray
    assert kept.dtype == array.dtype
    assert kept.tobytes() == array.tobytes()
    assert on_disk(kept) is kept
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


def test_what_is_turned_lies_in_order() -> None:
    assert np.array_equal(on_disk(LARGE.T), LARGE.T)


def test_small_arrays_and_texts_stay_in_memory() -> None:
    for array in (LARGE[:2], np.zeros((0, 1 << 30), np.int8), np.full(1 << 17, "text", object)):
        assert on_disk(array) is array


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "scratch_folder", lambda: str(tmp_path))
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    held = [on_disk(LARGE) for _ in range(4)]
    assert list(tmp_path.iterdir()) == []
    assert all(np.array_equal(kept, LARGE) for kept in held)
    del held
    gc.collect()
    assert not opened or len(os.listdir("/proc/self/fd")) == opened


def test_a_full_disk_is_told_with_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        on_disk(LARGE)
    assert "TMPDIR" in caught.value.hint


def test_the_folder_is_the_users_or_one_that_survives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch.scratch_folder.__wrapped__() == str(tmp_path)
    monkeypatch.delenv("TMPDIR")
    assert scratch.scratch_folder.__wrapped__() == ("/var/tmp" if os.access("/var/tmp", os.W_OK) else str(tmp_path))


def test_codes_of_weights_are_kept_in_files() -> None:
    codes = LARGE.astype(np.int8)
    params = QuantParams(
        QuantSpec(INT8, PerChannel(0), symmetric=True), np.ones(300, np.float32), np.zeros(300, np.int32)
    )
    store = WeightStore()
    store["w", "matmul"] = QuantizedWeight(params, codes)
    store["v", "matmul"] = QuantizedWeight(params, codes[:2])
    assert in_file(store["w", "matmul"].codes)
    assert np.array_equal(store["w", "matmul"].codes, codes)
    assert store["v", "matmul"].codes.base is codes
    assert store["w", "matmul"].params is params
