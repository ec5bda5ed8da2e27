"""Random graphs in half precision, as the CPU computes them: slowly, and as close as float16 is."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings

from qcompile.compiler.targets import target_named
from qcompile.frontends.builtin_recipes import find_recipe
from tests.sweep.harness import compile_in_memory, sqnr
from tests.sweep.random_graphs import graphs, samples
from tests.sweep.test_random_graphs import outputs, sweep

HALF = 40.0
"""dB: what a dozen operations keep; rounding to 11 bits once keeps about 70."""


@settings(sweep, max_examples=60)
@given(model=graphs())
def test_half_precision_is_close_and_keeps_the_interface(model: onnx.ModelProto) -> None:
    feeds = samples(model)
    expected = outputs(model.SerializeToString(), feeds, optimized=False)
    compiled = compile_in_memory(model, feeds, find_recipe("fp16").passes(), target_named("cuda"))
    done = onnx.load_from_string(compiled.data).graph
    for before, after in zip((*model.graph.input, *model.graph.output), (*done.input, *done.output), strict=True):
        assert (before.name, before.type.tensor_type.elem_type) == (after.name, after.type.tensor_type.elem_type)
    for name, got in outputs(compiled.data, feeds, optimized=False).items():
        assert np.isfinite(got).all()
        assert sqnr(expected[name], got) > HALF
