"""The reference finds faults: each of these results is slightly wrong, and is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qcompile.compiler.operators import catalogue
from tests.operators.operands import attributes_of, operands
from tests.operators.reference import Expected, expected

OPERATORS = catalogue()
LINEAR = ["LinearW8A8Bias", "LinearE4M3BiasGelu", "LinearW4A16ZeroBias", "Linear24BiasFp16", "LinearW8A8BiasRequant"]
LINEAR += ["LinearOutliersW8A8Bias"]


def nearest(result: Expected) -> np.ndarray:
    """The right answer, rounded."""
    return (np.rint(result.value) if result.dtype == np.int8 else result.value).astype(result.dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_rounded_value_itself_is_right(name: str) -> None:
    operator = OPERATORS[name]
    for result in expected(operator, operands(operator, (3,), 8, 64), attributes_of(operator)).values():
        result.check(nearest(result))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("fault", ["bias", "row", "column", "code"])
def test_a_wrong_operand_shows(name: str, fault: str) -> None:
    operator = OPERATORS[name]
    values = operands(operator, (4,), 8, 64)
    (result,) = expected(operator, values, attributes_of(operator)).values()
    x = "x" if "x" in values else "x_q"
    if fault == "bias":
        values["bias"] = values["bias"] * np.float32(1.05)
    elif fault == "row":
        values[x] = values[x][[0, 1, 3, 2]]
    elif fault == "column":
        values["w"] = values["w"][::-1]
    else:
        values[x] = values[x].copy()
        values[x][0, 0] = values[x][0, 0] + values[x].dtype.type(3)
    (wrong,) = expected(operator, values, attributes_of(operator)).values()
    with pytest.raises(AssertionError, match="wrong"):
        result.check(nearest(wrong))


@pytest.mark.parametrize("name", ["LayerNormQuant", "AddRMSNormQuantE4M3Fp16"])
def test_another_epsilon_shows(name: str) -> None:
    operator = OPERATORS[name]
    values = operands(operator, (4,), 8, 64)
    right = expected(operator, values, {"epsilon": 1e-5})
    for output in ("y", "x_scale"):
        with pytest.raises(AssertionError, match="wrong"):
            right[output].check(nearest(expected(operator, values, {"epsilon": 3e-2})[output]))


def test_a_neighbour_is_wrong() -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        one = Expected(np.ones(3), np.zeros(3), np.dtype(dtype))
        step = float(ml_dtypes.finfo(dtype).eps)
        one.check(np.ones(3, dtype))
        with pytest.raises(AssertionError, match="wrong"):
            one.check(np.array([1, 1, 1 + step]).astype(dtype))


def test_infinity_stands_for_what_is_too_large_only() -> None:
    large = Expected(np.array([1e6]), np.zeros(1), np.dtype(np.float16))
    large.check(np.array([np.inf], np.float16))
    for wrong in (65504.0, -np.inf):
        with pytest.raises(AssertionError, match="wrong"):
            large.check(np.array([wrong], np.float16))
    with pytest.raises(AssertionError):
        large.check(np.array([np.nan], np.float16))
