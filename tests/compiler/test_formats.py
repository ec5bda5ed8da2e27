from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompile.compiler.formats import FORMATS, NumericFormat, format_named
from qcompile.errors import RecipeError

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)


@every_format
def test_ranges_are_those_of_the_type(fmt: NumericFormat) -> None:
    dtype = fmt.dtype.numpy()
    info = ml_dtypes.iinfo(dtype) if fmt.is_integer else ml_dtypes.finfo(dtype)
    assert (fmt.low, fmt.high) == (float(info.min), float(info.max))
    assert fmt.is_signed == (fmt.low < 0)
    assert fmt.bits == (info.bits if fmt.is_integer else 8)


@every_format
def test_the_opset_is_the_first_that_accepts_the_type(fmt: NumericFormat) -> None:
    def accepts(version: int) -> bool:
        schema = onnx.defs.get_schema("DequantizeLinear", version, "")
        types = next(c.allowed_type_strs for c in schema.type_constraints if c.type_param_str in ("T", "T1"))
        return f"tensor({onnx.TensorProto.DataType.Name(fmt.dtype).lower()})" in types

    assert accepts(fmt.opset)
    assert fmt.opset == 10 or not accepts(fmt.opset - 1)


def test_names_are_keys() -> None:
    assert all(name == fmt.name and format_named(name) is fmt for name, fmt in FORMATS.items())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="int9") as error:
        format_named("int9")
    assert "int8" in error.value.hint


def test_numpy_is_not_asked_for_ranges_elsewhere() -> None:
    assert np.iinfo(np.int8).max == format_named("int8").high
