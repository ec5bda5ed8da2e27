"""Running one pass, or a few, on a small model written as ONNX text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Pass
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.printer import print_model
from qcompile.compiler.report import PassRecord
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Target
from qcompile.passes.prepare.infer_shapes import InferShapes
from qcompile.passes.prepare.lift_constants import LiftConstants
from qcompile.passes.prepare.unique_names import UniqueNames
from tests.golden import assert_golden

Arrays = dict[str, npt.NDArray[Any]]

NAMED: list[Pass] = [LiftConstants(), UniqueNames(), InferShapes()]
"""What most passes require."""


def context(target: Target | None = None) -> CompileContext:
    return CompileContext(target=target or target_named("cpu"), float_model=Path("unused"))


def model_of(text: str, weights: dict[str, npt.NDArray[Any]] | None = None) -> ir.Model:
    """The model written in `text` (ONNX's text form), with `weights` as initializers."""
    proto = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def run(model: ir.Model, *passes: Pass, on: CompileContext | None = None) -> list[PassRecord]:
    return run_pipeline(passes, model, on or context())


def outputs(model: ir.Model, feeds: Arrays) -> list[npt.NDArray[Any]]:
    """What ONNX Runtime computes, without any rewriting of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: list[npt.NDArray[Any]] = session.run(None, feeds)
    return found


def assert_close(expected: list[npt.NDArray[Any]], got: list[npt.NDArray[Any]], tolerance: float = 1e-5) -> None:
    """Equal to `tolerance`, relative to the largest magnitude of each output."""
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        largest = float(np.abs(a.astype(np.float64)).max(initial=0.0))
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * max(largest, 1e-3))


def check_pass(
    tested: Pass,
    model: ir.Model,
    feeds: Arrays,
    golden: str = "",
    before: list[Pass] | None = None,
    target: Target | None = None,
) -> ir.Model:
    """Run `tested` (after `before`): it changes the model, keeps its function, and changes nothing a
    second time. With `golden` the graphs before and after are compared with that golden text."""
    expected = outputs(model, feeds)
    if before:
        run(model, *before)
    first = print_model(model)
    on = context(target)
    facts = before or []
    assert run(model, *facts, tested, on=on)[-1].modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_close(expected, outputs(model, feeds))
    after = print_model(model, provenance=True)
    if golden:
        assert_golden(f"passes/{golden}", f"# before\n{first}\n# after\n{after}")
    assert not run(model, *facts, tested, on=on)[-1].modified, "a second run must find nothing to do"
    assert print_model(model, provenance=True) == after
    return model
