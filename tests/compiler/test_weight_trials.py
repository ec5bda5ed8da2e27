"""Blocks with other weights, against the same block with these weights in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.block_walker import BlockWalker
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.relative_error import relative_error
from qcompile.compiler.weight_trials import errors_with
from tests.passes.harness import NAMED, model_of
from tests.passes.int8 import normal
from tests.passes.llama import WIDTH, llama
from tests.sweep.harness import eager_target

SAMPLES: list[Sample] = [{"x": normal(1, 6, WIDTH, seed=i)} for i in range(2)]


def walk(model: ir.Model, samples: list[Sample]) -> BlockWalker:
    context = CompileContext(eager_target(), Path("unused"))
    run_pipeline(NAMED, model, context)
    return BlockWalker(model, context, samples)


@pytest.mark.parametrize("layers", [("w_q0",), ("w_v1", "w_k1"), ("w_down0",), ("w_gate1", "w_o1")])
def test_candidates_are_what_the_block_computes_with_them(layers: tuple[str, ...]) -> None:
    tried = 0
    for visit in walk(llama(2), SAMPLES):
        of = {n.inputs[1].name: n for n in visit.model.graph if n.op_type == "MatMul" and n.inputs[1] is not None}
        if not set(layers) <= set(of):
            continue
        own = {w: of[w].inputs[1].const_value.numpy() for w in layers}  # type: ignore[union-attr]
        other = {w: array + 0.05 * normal(*array.shape, seed=3) for w, array in own.items()}
        named = [{str(of[w].name): array for w, array in weights.items()} for weights in (own, other, own)]
        found = errors_with(visit, named[0], named)
        copy = visit.model.clone()
        for name, array in other.items():
            copy.graph.initializers[name].const_value = ir.tensor(array)
        expected = relative_error(visit.float_outputs, visit.run(copy, visit.float_inputs), visit.results)
        np.testing.assert_allclose(found, [0, expected, 0], rtol=1e-4, atol=1e-12)
        tried += 1
    assert tried == 1


def test_a_block_is_judged_by_what_goes_on() -> None:
    """A cache is returned, and no other block reads it; the last block has nothing but what it returns."""
    layer = "k{0} = MatMul ({1}, w{0}) t{0} = Tanh (k{0}) p{0} = MatMul (t{0}, v{0}) {2} = Add ({1}, p{0})"
    body = layer.format(0, "x", "y0") + layer.format(1, "y0", "y1") + layer.format(2, "y1", "y")
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,8] x) => (float[N,8] k0, float[N,8] k1, float[N,8] k2, '
        "float[N,8] y) {" + body + "}"
    )
    model = model_of(text, {f"{n}{i}": normal(8, 8, seed=i) for i in range(3) for n in "wv"})
    found = [(visit.block.outputs, tuple(visit.results)) for visit in walk(model, [{"x": normal(3, 8)}])]
    assert len(found) > 1
    for outputs, results in found[:-1]:
        assert set(outputs) > set(results)
        assert not any(name.startswith("k") for name in results)
    assert set(found[-1][1]) == set(found[-1][0])


def test_a_layer_that_no_other_block_reads_is_judged_by_what_it_returns() -> None:
    layer = "k{0} = MatMul ({1}, w{0}) t{0} = Tanh (k{0}) p{0} = MatMul (t{0}, v{0}) {2} = Add ({1}, p{0}) "
    layer += "beside{0} = MatMul ({2}, s{0}) "
    body = layer.format(0, "x", "y0") + layer.format(1, "y0", "y1") + layer.format(2, "y1", "y")
    returned = ", ".join(f"float[N,8] {name}" for name in ("beside0", "beside1", "beside2", "y"))
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N,8] x) => ({returned}) {{ {body} }}'
    model = model_of(text, {f"{n}{i}": normal(8, 8, seed=i) for i in range(3) for n in "wvs"})
    visits = iter(walk(model, [{"x": normal(3, 8)}]))
    visit = next(visits)
    assert "beside0" in visit.block.outputs
    assert "beside0" not in visit.results
    [node] = [n.name for n in visit.model.graph if n.outputs[0].name == "beside0"]
    [error] = errors_with(visit, [str(node)], [{str(node): np.zeros((8, 8), np.float32)}])
    assert error == pytest.approx(1)
