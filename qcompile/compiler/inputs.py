"""The inputs of a model, and arrays of their shapes where there are no real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import DataError

_SPATIAL, _LENGTH = 64, 32


@dataclass(frozen=True)
class ModelInput:
    """What the model says about one of its inputs.

    Attributes:
        dtype: numpy element type.
        shape: a number or a symbol for each dimension ("?" where it has no name); None if the rank is unknown.
        required: False for an input with a default value (an initializer).
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...] | None
    required: bool = True

    def __str__(self) -> str:
        dims = "any shape" if self.shape is None else "[" + ", ".join(map(str, self.shape)) + "]"
        return f"'{self.name}' {self.dtype} {dims}"


def model_inputs(model: ir.Model) -> list[ModelInput]:
    """The inputs of `model`, in order.

    Raises:
        DataError: an input is not a tensor (a sequence, an optional).
    """
    found = []
    for value in model.graph.inputs:
        name = value.name or ""
        if value.dtype is None or (value.type is not None and not isinstance(value.type, ir.TensorType)):
            raise DataError(f"input '{name}' is not a tensor of known type", hint="only tensor inputs are supported")
        shape = None
        if value.shape is not None:
            shape = tuple(d if isinstance(d, int) else (d.value or "?") for d in value.shape)
        found.append(ModelInput(name, value.dtype.numpy(), shape, required=not value.is_initializer()))
    return found


def made_up(
    inputs: Sequence[ModelInput],
    random: np.random.Generator,
    rows: Mapping[str, int],
    sizes: Mapping[str, int] | None = None,
    batch: int = 1,
) -> dict[str, np.ndarray[Any, Any]]:
    """One sample: standard normal floats, table indices within their table, other integers 1.

    A free first dimension is `batch`; other free dimensions are 64 in tensors of rank 4 and more, else 32.

    Args:
        rows: for inputs that index a constant table, how many rows it has.
        sizes: of free dimensions, by name.
    """
    known = dict(sizes or {})
    return {i.name: _array(i, known, random, rows, batch) for i in inputs if i.required}


def _array(
    given: ModelInput, sizes: dict[str, int], random: np.random.Generator, rows: Mapping[str, int], batch: int
) -> np.ndarray[Any, Any]:
    dims = given.shape or ()
    free = [batch if axis == 0 else _SPATIAL if len(dims) >= 4 else _LENGTH for axis in range(len(dims))]
    shape = [
        d if isinstance(d, int) else size if d == "?" else sizes.setdefault(d, size)
        for d, size in zip(dims, free, strict=True)
    ]
    if given.dtype.kind in "iu":
        count = rows.get(given.name)
        codes = random.integers(0, count, shape) if count else np.ones(shape)
        return np.asarray(codes, given.dtype)
    if given.dtype.kind == "b":
        return np.ones(shape, bool)
    return np.asarray(random.standard_normal(shape), given.dtype)


def table_rows(model: ir.Model) -> dict[str, int]:
    """Inputs that a Gather uses as row numbers of a constant table, with the table's number of rows."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        for node, position in value.uses():
            table = node.inputs[0] if node.inputs else None
            if node.op_type == "Gather" and position == 1 and table is not None and table.const_value is not None:
                axis = node.attributes.get_int("axis", 0)
                size = table.const_value.shape[axis]
                if isinstance(size, int) and value.name:
                    found[value.name] = min(size, found.get(value.name, size))
    return found
