"""QuantizeRows on values chosen by hand: ties, zeros, the smallest and the largest numbers, NaN."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.compiler.operators import catalogue, quantize_rows
from tests.operators.running import Array, model_of, run, session

INT8 = session(model_of(quantize_rows(), {"x": ["M", "K"]}))
E4M3 = session(model_of(quantize_rows(codes=ir.DataType.FLOAT8E4M3FN), {"x": ["M", "K"]}))


def rows(*values: list[float]) -> Array:
    return np.array(values, np.float32)


def test_halves_go_to_even_codes() -> None:
    got = run(INT8, {"x": rows([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127])})
    assert got["x_scale"].tolist() == [[1.0]]
    assert got["x_q"].tolist() == [[127, 0, 2, 2, 0, -2, -126, -127]]


def test_e4m3_rounds_to_nearest_even() -> None:
    """16 to 32 in steps of 2: 17 and 19 lie in the middle."""
    got = run(E4M3, {"x": rows([448, 17, 19, 17.1, -17, -448])})
    assert got["x_scale"].tolist() == [[1.0]]
    assert got["x_q"].astype(np.float32).tolist() == [[448, 16, 20, 18, -16, -448]]


@pytest.mark.parametrize("on", [INT8, E4M3], ids=["int8", "e4m3"])
def test_a_row_of_zeros_has_scale_one(on: onnxruntime.InferenceSession) -> None:
    got = run(on, {"x": rows([0, -0.0, 0], [2, 0, 0])})
    assert got["x_scale"][0].tolist() == [1.0]
    assert not got["x_q"][0].astype(np.float32).any()


@pytest.mark.parametrize("largest", [1e-45, 1e-43, 2.7e-43, 1e-40, 1e-38, 3.4e38])
def test_the_ends_of_the_float_range_stay_within_the_codes(largest: float) -> None:
    """A subnormal scale is so coarse that 190 / 1 would come out; too small a row counts as zeros."""
    x = rows([largest, -largest, largest / 2])
    for on, high in ((INT8, 127), (E4M3, 448)):
        got = run(on, {"x": x})
        codes = got["x_q"].astype(np.float64)
        assert np.abs(codes).max() <= high
        steps = 224 * 2.0**-149  # below, x_scale would round to 0
        assert np.abs(codes * got["x_scale"].astype(np.float64) - x).max() <= max(largest * 0.52, steps)


def test_nan_does_not_look_like_a_number() -> None:
    """In E4M3 an element stays NaN; other rows are untouched."""
    got = run(E4M3, {"x": rows([1, np.nan, 2], [1, 2, 4])})
    assert np.isnan(got["x_q"].astype(np.float32)[0, 1])
    assert got["x_q"].astype(np.float32)[1].tolist() == [112, 224, 448]
    assert run(INT8, {"x": rows([1, np.nan, 2], [1, 2, 4])})["x_q"][1].tolist() == [32, 64, 127]


def test_narrow_types_are_widened_first() -> None:
    """3 / 127 is no float16; the scale is float32 whatever x is."""
    for dtype, name in ((np.float16, "Fp16"), (ml_dtypes.bfloat16, "Bf16")):
        x = rows([3, -1, 0.1]).astype(dtype)
        got = run(session(model_of(catalogue()[f"QuantizeRows{name}"], {"x": ["M", "K"]})), {"x": x})
        assert got["x_scale"].tolist() == [[float(np.float32(3) / np.float32(127))]]
