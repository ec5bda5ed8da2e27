"""GPTQ in whole models: less error than rounding to nearest, on the grids of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.passes import Pass
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.simulation import lowered_copy
from qcompile.errors import DataError
from qcompile.passes.quantize.gptq import Gptq
from tests.compiler.walks import QUANTIZED, ready, whole
from tests.golden import assert_golden
from tests.passes.harness import model_of
from tests.passes.int8 import Array, head, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.quantize.test_ada_round import narrow
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, LINEAR, LINEAR_WEIGHTS, images, rows
from tests.sweep.harness import Samples

def solved(
    model: ir.Model, feeds: Sequence[Sample], passes: Sequence[Pass] = QUANTIZED, *, tested: Gptq = Gptq(), bits: int = 4
) -> tuple[ir.Model, CompileContext, QuantPlan]:
    """The model, its context with the codes found, and the plan before."""
    model, context = ready(model, feeds, passes, narrow(bits))
    before = replace(context.plan, weights=dict(context.plan.weights))
    tested.run(model, context)
    return model, context, before


def noise(model: ir.Model, context: CompileContext, plan: QuantPlan, feeds: Sequence[Sample]) -> float:
    exact, given = whole(model, feeds), whole(lowered_copy(model, context, plan), feeds)
    return float(np.mean([np.square(g["y"] - e["y"]).mean() for g, e in zip(given, exact, strict=True)]))


CASES: dict[str, Any] = {"images": (IMAGES, IMAGE_WEIGHTS, images, 0.6), "rows": (LINEAR, LINEAR_WEIGHTS, rows, 0.9)}

@pytest.mark.parametrize("case", CASES)
def test_four_bits_gain_in_whole_models(case: str) -> None:
    text, weights, make, gain = CASES[case]
    every = make(24)
    model, context, before = solved(model_of(text, dict(weights)), every[:12])
    print(noise(model, context, context.plan, every[12:]) / noise(model, context, before, every[12:]))
    assert noise(model, context, context.plan, every[12:]) < gain * noise(model, context, before, every[12:])
    for key, planned in before.weights.items():
        found = context.plan.weights[key]
        assert found.params is planned.params
        assert found.codes.dtype == planned.codes.dtype
        assert np.abs(found.codes).max() <= 7
