"""Formats need an opset that has them."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import opset
from qcompile.compiler.targets.table import Formats
from qcompile.errors import RecipeError


def demand(formats: Formats, model: ir.Model, asked_by: str) -> Formats:
    """`formats`, where the opset of `model` has both.

    Raises:
        RecipeError: it has not.
    """
    for fmt in (formats.activation, formats.weight):
        if opset(model) < fmt.opset:
            raise RecipeError(
                f"{fmt.name} needs opset {fmt.opset}, and the model has {opset(model)}",
                where=asked_by,
                hint=f"set upgrade-opset.minimum to {fmt.opset} or more",
            )
    return formats
