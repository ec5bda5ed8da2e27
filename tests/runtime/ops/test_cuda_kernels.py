"""The CUDA kernels that need no library of NVIDIA's, run thread by thread on the CPU: small shapes, every path."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.gpu.reference import FLOATS, assert_codes, assert_within, epsilon, normal, smallest, sum_bound
from tests.runtime.ops.emulated import Array, Kernels, build

CODES = {"int8": (ir.DataType.INT8, 127.0), "e4m3": (ir.DataType.FLOAT8E4M3FN, 448.0)}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return build(tmp_path_factory.mktemp("emulated"))


def as_codes(ratio: Array, codes: ir.DataType) -> Array:
    """What the bodies of the operators say."""
    if codes is ir.DataType.INT8:
        return np.clip(np.round(ratio), -127, 127).astype(np.int8)
    return np.clip(ratio, -448, 448).astype(codes.numpy())


# Rows held by a warp, by 128 and by 512 threads, by 512 threads with twice the registers, and rows read again.
@pytest.mark.parametrize("k", [8, 1000, 2048, 16376, 17000, 7, 40000])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_codes_of_rows_are_those_of_the_body(kernels: Kernels, k: int, codes: str, dtype: str) -> None:
    rng = np.random.default_rng(k)
    x = normal(rng, 5, k).astype(FLOATS[dtype].numpy())
    x_q, x_scale = kernels.quantize_rows(x, CODES[codes][0])
    exact = x.astype(np.float32)
    scale = np.abs(exact).max(-1, keepdims=True) / np.float32(CODES[codes][1])
    scale[scale == 0] = 1
    np.testing.assert_array_equal(x_scale, scale)
    np.testing.assert_array_equal(x_q.view(np.uint8), as_codes(exact / scale, CODES[codes][0]).view(np.uint8))


def test_a_nan_or_infinity_reaches_the_scale(kernels: Kernels) -> None:
    x = np.ones((3, 64), np.float32)
    x[0, 63], x[1, 5] = np.nan, -np.inf
    x_q, x_scale = kernels.quantize_rows(x, ir.DataType.INT8)
    np.testing.assert_array_equal(x_scale[:, 0], np.float32([np.nan, np.inf, 1 / np.float32(127)]))
    np.testing.assert_array_equal(x_q[2], 127)


def test_subnormal_rows_stay_in_range(kernels: Kernels) -> None:
    step = np.float32(2.0**-149)
    x = np.float32([[190, -190, 100, 0], [1, -1, 0, 0]]) * step
    x_q, x_scale = kernels.quantize_rows(x, ir.DataType.INT8)
    np.testing.assert_array_equal(x_scale[:, 0], [step, 1])
    np.testing.assert_array_equal(x_q, [[127, -127, 100, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("k", [8, 1000, 2048, 9000, 17000, 7])
@pytest.mark.parametrize("add", [False, True], ids=["", "add"])
@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_norms(kernels: Kernels, k: int, add: bool, rms: bool, dtype: str) -> None:
    rng = np.random.default_rng(k)
    x, skip = ((normal(rng, 5, k) + 3).astype(FLOATS[dtype].numpy()) for _ in range(2))
    gamma, beta = rng.standard_normal((2, k)).astype(np.float32)
    codes, high = CODES["int8"]
    x_q, x_scale, y, total = kernels.norm_quant(x, skip if add else None, gamma, None if rms else beta, 1e-5, codes)

    summed = (x.astype(np.float32) + skip.astype(np.float32)).astype(x.dtype) if add else x
    np.testing.assert_array_equal(total, summed)
    exact = summed.astype(np.float64)
    centered = exact if rms else exact - exact.mean(-1, keepdims=True)
    unit = centered / np.sqrt(np.mean(centered**2, -1, keepdims=True) + 1e-5)
    expected = unit * gamma + (0 if rms else beta)
    terms = (np.abs(unit) + 1) * np.abs(gamma) + np.abs(beta)
    bound = terms * 2.0**-20
    assert_within(y, expected, bound + epsilon(FLOATS[dtype]) * np.abs(expected) + smallest(FLOATS[dtype]))
    assert_within(x_scale, np.abs(expected).max(-1, keepdims=True) / high, bound.max(-1, keepdims=True) / high)
    assert_codes(x_q, expected / x_scale, -127, 127, 2 * bound / x_scale + 127 * 2.0**-20)


def pack(codes: Array) -> Array:
    """4-bit codes, two a byte, the first in the low half; a last one alone when there is an odd number."""
    flat = (codes.reshape(-1) & 15).astype(np.uint8)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return np.asarray(flat[0::2] | flat[1::2] << 4)


def check_w4a16(kernels: Kernels, dtype: str, m: int, n: int, k: int, block: int, *, zero: bool, bias: bool) -> None:
    rng = np.random.default_rng([m, n, k, block])
    floats: Any = FLOATS[dtype].numpy()
    x = normal(rng, m, k).astype(floats)
    codes = rng.integers(0, 16, (n, k)) if zero else rng.integers(-8, 8, (n, k))
    zeros = rng.integers(0, 16, (n, k // block)) if zero else np.zeros((n, k // block), np.int64)
    scale = rng.uniform(0.01, 0.1, (n, k // block)).astype(np.float16)
    added = rng.standard_normal(n).astype(np.float32)

    y = kernels.linear_w4a16(
        x, pack(codes).reshape(n, k // 2), scale, pack(zeros) if zero else None, added if bias else None, block
    )
    w = (codes - np.repeat(zeros, block, 1)).astype(np.float32) * np.repeat(scale, block, 1).astype(np.float32)
    w = w.astype(floats).astype(np.float64)
    exact = x.astype(np.float64) @ w.T + (added if bias else 0)
    terms = np.abs(x.astype(np.float64)) @ np.abs(w.T) + np.abs(added)
    bound = sum_bound(terms, k) + epsilon(FLOATS[dtype]) * np.abs(exact) + smallest(FLOATS[dtype])
    assert_within(y, exact, bound)


HALVES = ("f16", "bf16")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize(
    ("m", "n", "k", "block"),
    [
        (1, 40, 32, 32),  # less than a chunk of k, and than the columns of a block of threads
        (7, 33, 1184, 32),  # each warp has a chunk, two of them a second one, the last one is not whole
        (9, 25, 192, 64),
        (16, 96, 1152, 128),
    ],
)
def test_w4a16_for_few_rows(kernels: Kernels, dtype: str, zero: bool, m: int, n: int, k: int, block: int) -> None:
    check_w4a16(kernels, dtype, m, n, k, block, zero=zero, bias=n % 2 == 0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize(
    ("m", "n", "k", "block"),
    [
        (17, 25, 96, 32),  # tiles of 32 rows; an odd number of blocks, whose scales end within a word
        (17, 24, 1056, 32),  # two shares of k, the last step of which is not whole
        (33, 136, 192, 64),  # 64 rows, two tiles of columns
        (129, 130, 256, 128),  # 128 rows, the last tile has one
    ],
)
def test_w4a16_for_many_rows(kernels: Kernels, dtype: str, zero: bool, m: int, n: int, k: int, block: int) -> None:
    check_w4a16(kernels, dtype, m, n, k, block, zero=zero, bias=n % 2 == 0)


@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize(("m", "n", "k", "block"), [(1, 4, 32, 32), (6, 7, 2208, 32), (17, 9, 512, 128)])
def test_w4a16_in_float32(kernels: Kernels, zero: bool, m: int, n: int, k: int, block: int) -> None:
    check_w4a16(kernels, "f32", m, n, k, block, zero=zero, bias=n % 2 == 0)
