"""Small models through int8-static, and what must hold of every result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import graphs
from qcompile.compiler.passes import Pass, import_passes
from qcompile.compiler.plan import Form, QuantPlan
from qcompile.compiler.recipe import Recipe
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Target
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.legality import find_faults
from qcompile.compiler.verification.optimized import optimize
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.harness import Arrays, model_of
from tests.sweep.harness import compile_in_memory, eager_target, session, sqnr

import_passes("qcompile.passes")

Array = np.ndarray[Any, Any]
STATIC = find_recipe("int8-static").with_overrides(["calibrate.method=min-max"])
"""int8-static with scales that follow from the smallest and largest value."""
CPU = "CPUExecutionProvider"


def head(opset: int = 17) -> str:
    return f'<ir_version: {10 if opset > 20 else 8}, opset_import: ["": {opset}]> '


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@dataclass
class Lowered:
    """A compiled model with the outputs of its three states on the first sample."""

    model: ir.Model
    data: bytes
    context: CompileContext
    expected: dict[str, Array]
    plain: dict[str, Array]
    optimized: dict[str, Array]
    float_model: ir.Model

    @property
    def plan(self) -> QuantPlan:
        return self.context.plan

    @property
    def forms(self) -> dict[str, str]:
        """Units by the name of what they write: {output: form}."""
        return {unit.output: unit.form.name for unit in self.plan.units.values()}

    def initializers(self) -> dict[str, ir.Value]:
        return {name: value for graph in graphs(self.model) for name, value in graph.initializers.items()}

    def sqnr(self, output: str) -> float:
        return sqnr(self.expected[output], self.plain[output])

    def kernels(self) -> list[str]:
        """Operators of the graph that ONNX Runtime makes of it, conversions and bodies included."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(self.data)
            return [node.op_type for node in optimize(path, CPU).nodes]


def int8(
    text: str,
    weights: Mapping[str, Array],
    samples: Sequence[Sample],
    *options: str,
    target: Target | None = None,
    recipe: Recipe | None = None,
    passes: Sequence[Pass] | None = None,
) -> Lowered:
    """Compile, by default for a CPU on which float is endlessly slow. `options`: pass.option=value; `passes` stand
    in the place of a recipe."""
    proto = ir.to_proto(model_of(text, dict(weights)))
    return compiled(proto, samples, *options, target=target, recipe=recipe, passes=passes)


def compiled(
    proto: onnx.ModelProto,
    samples: Sequence[Sample],
    *options: str,
    target: Target | None = None,
    recipe: Recipe | None = None,
    passes: Sequence[Pass] | None = None,
) -> Lowered:
    """As `int8`, for a model that was made otherwise."""
    steps = passes or (recipe or STATIC).with_overrides(options).passes()
    done = compile_in_memory(proto, samples, steps, target or eager_target())
    runs = {}
    feeds: Arrays = dict(samples[0])
    for state, (data, optimized) in {
        "expected": (proto.SerializeToString(), False),
        "plain": (done.data, False),
        "optimized": (done.data, True),
    }.items():
        opened = session(data, optimized=optimized)
        known = {i.name for i in opened.get_inputs()}
        names = [o.name for o in opened.get_outputs()]
        runs[state] = dict(zip(names, opened.run(names, {k: v for k, v in feeds.items() if k in known}), strict=True))
    lowered = ir.from_proto(onnx.load_from_string(done.data))
    return Lowered(lowered, done.data, done.context, **runs, float_model=ir.from_proto(proto))


def check(result: Lowered, least: float = 22.0) -> None:
    """Interface, agreement, kernels, names and leftovers.

    Args:
        least: SQNR of every output against float, in dB.
    """
    plan, model = result.plan, result.model
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [
        (v.name, v.dtype) for v in result.float_model.graph.outputs
    ]
    assert [(v.name, v.dtype) for v in model.graph.inputs] == [
        (v.name, v.dtype) for v in result.float_model.graph.inputs
    ]
    for name, plain in result.plain.items():
        assert plain.shape == result.expected[name].shape
        step = float(plan.tensors[name].scale) if name in plan.tensors else 0.02 * float(np.abs(plain).max())
        np.testing.assert_allclose(result.optimized[name], plain, rtol=0, atol=1.01 * step)
        assert result.sqnr(name) > least, f"{name}: {result.sqnr(name):.1f} dB"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(result.data)
        proof = prove_dispatch(path, target_named("cpu"), plan).proof
    assert proof.passed is not False, proof.detail
    assert find_faults(model, target_named("cpu")) == []
    held = result.initializers()
    unused = [n for n, v in held.items() if not v.uses() and not v.is_graph_output()]
    assert unused == []
    idle = [n.name for n in model.graph.all_nodes() if not any(v.uses() or v.is_graph_output() for v in n.outputs)]
    assert idle == [], "every node is read"
    for (weight, unit), quantized in plan.weights.items():
        assert weight not in held, f"the float weight of {unit} is left beside its codes"
        if plan.units[unit].form in (Form.FULL, Form.INPUTS, Form.ROWS):
            written = held.get(f"{weight}_{unit}_quantized") or held[f"{weight}_quantized"]
            np.testing.assert_array_equal(written.const_value.numpy(), quantized.codes)  # type: ignore[union-attr]
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert_named(node)


def assert_named(node: ir.Node) -> None:
    """V_quantized and V_dequantized with V_scale and V_zero_point; copies of another graph end in _2, _3, ..."""
    ending = {"QuantizeLinear": "_quantized", "DequantizeLinear": "_dequantized"}[node.op_type]
    written = str(node.outputs[0].name)
    if not node.outputs[0].is_graph_output():
        assert ending in written
        base = written[: written.rindex(ending)]
        for value, part in zip(node.inputs[1:], ("_scale", "_zero_point"), strict=True):
            assert value is not None
            assert str(value.name).startswith(base + part)
