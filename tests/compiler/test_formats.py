from __future__ import annotations

import ml_dtypes
import onnx
import pytest

from qcompile.compiler.formats import FORMATS, NumericFormat

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
every_number = pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if not f.levels], ids=lambda f: f.name)


@every_number
def test_ranges_are_those_of_the_type(fmt: NumericFormat) -> None:
    dtype = fmt.dtype.numpy()
    info = ml_dtypes.iinfo(dtype) if fmt.is_integer else ml_dtypes.finfo(dtype)
    assert (fmt.low, fmt.high) == (float(info.min), float(info.max))
    assert fmt.is_signed == (fmt.low < 0)
    assert fmt.bits == info.bits


@every_format
def test_the_opset_is_the_first_that_accepts_the_type(fmt: NumericFormat) -> None:
    def accepts(version: int) -> bool:
        schema = onnx.defs.get_schema("DequantizeLinear", version, "")
        types = next(c.allowed_type_strs for c in schema.type_constraints if c.type_param_str in ("T", "T1"))
        return f"tensor({onnx.TensorProto.DataType.Name(fmt.dtype).lower()})" in types

    assert accepts(fmt.opset)
    assert fmt.opset == 10 or not accepts(fmt.opset - 1)


def test_names_are_keys() -> None:
    assert all(name == fmt.name for name, fmt in FORMATS.items())
