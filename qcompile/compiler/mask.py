"""Padding: the input of a model that says which positions of a batch count.

mask [batch, length] = 1 where a position counts;   a tensor [batch, length, ...] of the same named axes follows it
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Mask:
    """The model input that is true where a position counts.

    Attributes:
        dimensions: the names of its axes; None for an axis of size 1.
    """

    value: ir.Value
    dimensions: tuple[str | None, ...]

    @classmethod
    def named(cls, name: str, model: ir.Model) -> Mask:
        """The mask that is the input of that name.

        Raises:
            DataError: there is no such input, or its axes have no names that tensors could share.
        """
        value = next((v for v in model.graph.inputs if v.name == name), None)
        if value is None:
            inputs = ", ".join(str(v.name) for v in model.graph.inputs)
            raise DataError(f"the model has no input '{name}' to serve as mask", hint=f"its inputs are {inputs}")
        dimensions = [None if d == 1 else d for d in value.shape or ()]
        names = tuple(None if d is None or isinstance(d, int) else d.value for d in dimensions)
        if not any(names) or any(d is not None and n is None for d, n in zip(dimensions, names, strict=True)):
            raise DataError(
                f"the axes of the mask '{name}' have no names, by which tensors with the same axes are found",
                where=f"{name} {value.shape}",
                hint="export the model with named dynamic axes, such as ['batch', 'length']",
            )
        return cls(value, names)

    def places(self, value: ir.Value) -> list[tuple[int, ...]] | None:
        """The axes of `value` that the named axes lie along, once for each way; None if one does not occur.

        The scores of an attention [batch, heads, length, length] have two: queries and keys.
        """
        if value.shape is None:
            return None
        sizes = [None if isinstance(d, int) else d.value for d in value.shape]
        named = [d for d in self.dimensions if d is not None]
        ways = list(product(*([i for i, size in enumerate(sizes) if size == name] for name in named)))
        return ways or None

    def rows(self, x: Any, way: tuple[int, ...], mask: Array) -> Any:
        """The rows [positions, K] of `x` that count, `mask` being its values and `way` one of the `places`."""
        from array_api_compat import array_namespace, device

        counts = mask.reshape([n for n, d in zip(mask.shape, self.dimensions, strict=True) if d is not None]) != 0
        counts = counts.transpose(np.argsort(way))
        counts = counts.reshape([n if i in way else 1 for i, n in enumerate(x.shape[:-1])])
        counts = np.array(np.broadcast_to(counts, x.shape[:-1]))
        return x[array_namespace(x).asarray(counts, device=device(x))]
