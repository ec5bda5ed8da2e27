"""What the tests of low-rank branches share: inputs of unequal size that go together, and what a branch is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import Sample
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.recipe import Recipe, Step
from tests.passes.int8 import head, normal
from tests.passes.llama import WIDTH

Array = np.ndarray[Any, Any]

LAYERS = {
    head(21) + "g (float[S,8] x) => (float[S,6] y) { y = MatMul (x, w) }": {"w": normal(8, 6)},
    head(21) + "g (float[B,S,8] x) => (float[B,S,6] y) { p = MatMul (x, w) y = Add (p, b) }": {
        "w": normal(8, 6),
        "b": normal(6),
    },
    head(21) + "g (float[S,8] x) => (float[S,6] y) { p = Gemm <transB = 1> (x, w, b) y = Relu (p) }": {
        "w": normal(6, 8),
        "b": normal(6),
    },
}
"""Each reads 8 values and gives 6."""


def together(width: int = WIDTH, rows: int = 64, count: int = 4) -> list[Sample]:
    """Samples whose columns go together and have very different sizes."""
    rng = np.random.default_rng(5)
    mixed = np.linalg.qr(rng.standard_normal((width, width)))[0] * np.exp(rng.standard_normal(width))
    return [{"x": (rng.standard_normal((1, rows, width)) @ mixed).astype(np.float32)} for _ in range(count)]


def branch(model: ir.Model, layer: str) -> tuple[Array, Array]:
    """Both matrices of the branch of a layer, as its products read them: [K, r] and [r, N]."""
    by_name = {str(node.name): node for node in nodes(model)}
    inner, outer = (constant(by_name[f"{layer}_low_rank_{part}"].inputs[1]) for part in ("inner", "outer"))
    assert inner is not None
    assert outer is not None
    return inner, outer


def with_step(recipe: Recipe, behind: str, *steps: Step) -> Recipe:
    """A recipe with more steps behind the one of that name."""
    at = next(i for i, step in enumerate(recipe.steps, 1) if step.name == behind)
    return recipe.model_copy(update={"steps": (*recipe.steps[:at], *steps, *recipe.steps[at:])})
