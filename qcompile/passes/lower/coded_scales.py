"""Scales of blocks as an artifact stores them, read as numbers and written anew in the same form.

    float32 or float16 numbers, or double quantization: scale = code * step + mean, int8 codes in groups with one step

Source: Dettmers et al., "QLoRA", 2023, section 3, for double quantization.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.formats import Scales
from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.lora.places import MERGE_EARLIER
from qcompile.compiler.params import QuantParams
from qcompile.compiler.scales import GROUP
from qcompile.compiler.stored_weights import stored_behind
from qcompile.errors import DataError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StoredScales:
    """Scales of blocks, as they are stored.

    Attributes:
        leaves: the stored values: float32 or float16 numbers, or the int8 codes, steps and mean of double quantization.
        count: of the scales.
    """

    kind: Scales
    leaves: tuple[ir.Value, ...]
    count: int

    @classmethod
    def of(cls, value: ir.Value) -> StoredScales | None:
        """None where they are stored in a way that is not read here."""
        stored = [v for v in stored_behind(value) if v.dtype is not ir.DataType.INT64]
        kinds = {v.dtype for v in stored}
        if value.shape is None or not value.shape.is_static():
            return None
        count = prod(value.shape.numpy())
        if len(stored) == 1 and kinds <= {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
            kind = Scales.FLOAT16 if ir.DataType.FLOAT16 in kinds else Scales.FLOAT32
            return cls(kind, tuple(stored), count)
        numbers = [v for v in stored if v.dtype is ir.DataType.INT8]
        rest = sorted((v for v in stored if v.dtype is ir.DataType.FLOAT), key=lambda v: -len(v.shape or ()))
        if len(numbers) == 1 and len(rest) == 2 and kinds == {ir.DataType.INT8, ir.DataType.FLOAT}:
            return cls(Scales.DOUBLE, (numbers[0], *rest), count)
        return None

    def read(self) -> Floats:
        """The scales in effect, one behind the other."""
        arrays = [numbers_of(leaf) for leaf in self.leaves]
        if self.kind is not Scales.DOUBLE:
            return arrays[0].astype(np.float32).reshape(-1)
        codes, step, mean = arrays
        found: Floats = (codes.astype(np.float32) * step + mean).reshape(-1)[: self.count]
        return found

    def write(self, params: QuantParams) -> None:
        if self.kind is not Scales.DOUBLE:
            write_numbers(self.leaves[0], params.scale)
            return
        assert params.nested is not None
        groups = np.zeros((params.nested.scale.size, GROUP), np.int8)
        groups.reshape(-1)[: self.count] = params.nested.codes.reshape(-1)
        codes, step, mean = self.leaves
        write_numbers(codes, groups)
        write_numbers(step, params.nested.scale)
        write_numbers(mean, params.nested.offset)


def numbers_of(value: ir.Value) -> npt.NDArray[Any]:
    """What an initializer holds."""
    array = constant(value)
    assert array is not None
    return array


def write_numbers(value: ir.Value, array: npt.NDArray[Any]) -> None:
    """Give an initializer other numbers, in its own type and shape.

    Raises:
        DataError: other layers read it too.
    """
    assert value.dtype is not None
    assert value.shape is not None
    shaped = np.ascontiguousarray(array.reshape(value.shape.numpy()).astype(value.dtype.numpy()))
    if len(value.uses()) > 1 and not np.array_equal(shaped, numbers_of(value)):
        raise DataError(f"several layers read the codes or scales '{name_of(value)}'", hint=MERGE_EARLIER)
    value.const_value = ir.tensor(shaped, dtype=value.dtype, name=value.name)
