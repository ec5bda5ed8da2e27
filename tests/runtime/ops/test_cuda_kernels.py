"""The CUDA kernels that need no library of NVIDIA's, run thread by thread on the CPU: small shapes, every path."""

from __future__ import annotations

import shutil
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, linear_outliers, linear_w4a16, norm_quant, quantize_rows
from qcompile.compiler.operators.linear import Activation
from qcompile.compiler.operators.norm_quant import Norm
from tests.gpu.machine import Machine
from tests.operators.operands import attributes_of, operands
from tests.operators.reference import expected
from tests.runtime.ops.emulated import Kernels, build

FLOATS = {"f32": ir.DataType.FLOAT, "f16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
HALVES = [FLOATS["f16"], FLOATS["bf16"]]
CODES = {"int8": ir.DataType.INT8, "e4m3": ir.DataType.FLOAT8E4M3FN}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return build(tmp_path_factory.mktemp("emulated"))


def check(kernels: Kernels, operator: Operator, m: int, n: int, k: int, block: int = 32) -> None:
    inputs, attributes = operands(operator, (m,), n, k, block=block), attributes_of(operator, block)
    found = kernels.run(operator, inputs, attributes)
    for name, right in expected(operator, inputs, attributes).items():
        right.check(found[name], f"{operator.name}.{name}")


# Rows held by a warp, by 128 and by 512 threads, by 512 threads with twice the registers, and rows read again.
@pytest.mark.parametrize("k", [8, 1000, 2048, 16376, 17000, 7, 40000])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_codes_of_rows_are_those_of_the_body_bit_for_bit(kernels: Kernels, k: int, codes: str, dtype: str) -> None:
    operator = quantize_rows(dtype=FLOATS[dtype], codes=CODES[codes])
    inputs = operands(operator, (5,), 0, k)
    inputs["x"][1] = 0
    body = Machine("body", None).run(operator, inputs)
    for name, array in kernels.run(operator, inputs, {}).items():
        np.testing.assert_array_equal(array.view(np.uint8), body[name].view(np.uint8), err_msg=name)


def test_a_nan_or_infinity_reaches_the_scale(kernels: Kernels) -> None:
    x = np.ones((3, 64), np.float32)
    x[0, 63], x[1, 5] = np.nan, -np.inf
    found = kernels.run(quantize_rows(), {"x": x}, {})
    np.testing.assert_array_equal(found["x_scale"][:, 0], np.float32([np.nan, np.inf, 1 / np.float32(127)]))
    np.testing.assert_array_equal(found["x_q"][2], 127)


def test_subnormal_rows_stay_in_range(kernels: Kernels) -> None:
    step = np.float32(2.0**-149)
    x = np.float32([[190, -190, 100, 0], [1, -1, 0, 0]]) * step
    found = kernels.run(quantize_rows(), {"x": x}, {})
    np.testing.assert_array_equal(found["x_scale"][:, 0], [step, 1])
    np.testing.assert_array_equal(found["x_q"], [[127, -127, 100, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("k", [8, 1000, 2048, 9000, 17000, 7])
@pytest.mark.parametrize("add", [False, True], ids=["", "add"])
@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize(("dtype", "codes"), [("f32", "int8"), ("f16", "e4m3"), ("bf16", "int8")])
def test_norms(kernels: Kernels, k: int, add: bool, norm: Norm, dtype: str, codes: str) -> None:
    check(kernels, norm_quant(norm, add=add, dtype=FLOATS[dtype], codes=CODES[codes]), 5, 0, k)


def test_a_nan_fills_its_row_and_no_other(kernels: Kernels) -> None:
    for operator in (norm_quant(), linear_w4a16(), linear_w4a16(dtype=FLOATS["f32"])):
        for m in (5, 20):
            inputs, attributes = operands(operator, (m,), 40, 128), attributes_of(operator)
            inputs["x"][1, 3] = np.nan
            found = kernels.run(operator, inputs, attributes)
            np.testing.assert_array_equal(np.isnan(found["y"]).any(-1), np.arange(m) == 1)
            np.testing.assert_array_equal(np.isnan(found["y"]).all(-1), np.arange(m) == 1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
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
def test_w4a16_for_few_rows(
    kernels: Kernels, dtype: ir.DataType, zero: bool, m: int, n: int, k: int, block: int
) -> None:
    check(kernels, linear_w4a16(zero=zero, bias=n % 2 == 0, dtype=dtype), m, n, k, block)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
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
def test_w4a16_for_many_rows(
    kernels: Kernels, dtype: ir.DataType, zero: bool, m: int, n: int, k: int, block: int
) -> None:
    check(kernels, linear_w4a16(zero=zero, bias=n % 2 == 0, dtype=dtype), m, n, k, block)


@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize(("m", "n", "k", "block"), [(1, 4, 32, 32), (6, 7, 2208, 32), (17, 9, 512, 128)])
def test_w4a16_in_float32(kernels: Kernels, zero: bool, m: int, n: int, k: int, block: int) -> None:
    check(kernels, linear_w4a16(zero=zero, bias=n % 2 == 0, dtype=FLOATS["f32"]), m, n, k, block)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 16), (9, 136, 64), (17, 24, 1040), (8, 128, 2)])
def test_outliers(kernels: Kernels, dtype: str, activation: Activation, m: int, n: int, k: int) -> None:
    """Rows and columns of a block that are not all there; a warp and more to a row."""
    check(kernels, linear_outliers(bias=n > 8, activation=activation, dtype=FLOATS[dtype]), m, n, k)


@pytest.mark.parametrize("outliers", [0, 1, 32, 75])
def test_any_number_of_outliers(kernels: Kernels, outliers: int) -> None:
    operator, k = linear_outliers(), 96
    inputs = operands(operator, (10,), 40, k) | {"columns": np.arange(outliers)}
    inputs["keep"] = (np.arange(k) >= outliers).astype(np.float32)
    inputs["w_columns"] = np.random.default_rng(0).standard_normal((outliers, 40)).astype(np.float32)
    expected(operator, inputs, {})["y"].check(kernels.run(operator, inputs, {})["y"])


def test_what_is_no_column_is_nan(kernels: Kernels) -> None:
    for number in (-1, 16, 2**40):
        inputs = operands(linear_outliers(), (3,), 8, 16)
        inputs["columns"][1] = number
        assert np.isnan(kernels.run(linear_outliers(), inputs, {})["y"]).all()


def test_a_block_that_no_kernel_has_is_refused(kernels: Kernels) -> None:
    with pytest.raises(AssertionError, match="block_size is 32, 64 or 128"):
        check(kernels, linear_w4a16(), 1, 8, 64, 16)
