"""Units that are operators with a function body: the runtime inlines the body, and the proofs must see through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.compiler.diff import diff
from qcompile.compiler.plan import Form
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.legality import find_faults
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import Lowered, head, int8, normal

WEIGHTS = {
    "k1": normal(8, 3, 3, 3), "b1": normal(8), "k2": normal(8, 8, 3, 3), "k3": normal(8, 8, 1, 1),
    "w": normal(8, 8), "b": normal(8), "v": normal(8, 8, seed=1), "c": normal(8, seed=1), "g": normal(8, 4),
}  # fmt: skip
MODEL = (
    head()
    + """
graph (float[1, 3, 8, 8] x) => (float[64, 8] y, float[64, 4] z) <int64[2] rows = {64, 8}> {
    c1 = Conv<pads = [1, 1, 1, 1]>(x, k1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads = [1, 1, 1, 1]>(r1, k2)
    c3 = Conv(c2, k3)
    t = Transpose<perm = [0, 2, 3, 1]>(c3)
    f = Reshape(t, rows)
    s = Softmax(f)
    m1 = MatMul(s, w)
    a1 = Add(m1, b)
    e = Exp(a1)
    m2 = MatMul(e, v)
    y = Add(m2, c)
    z = Gemm(e, g)
}
"""
)


def recipe() -> Recipe:
    steps = list(find_recipe("int8-static").steps)
    steps.insert([s.name for s in steps].index("lower-integer-matmul"), Step(name="outline"))
    return Recipe(name="outlined", steps=tuple(steps))


@pytest.fixture(scope="module")
def outlined() -> Lowered:
    samples = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(4)]
    weights = {name: array * 0.2 for name, array in WEIGHTS.items()}
    return int8(MODEL, weights, samples, recipe=recipe())


@pytest.fixture
def artifact(outlined: Lowered, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(outlined.data)
    return path


def test_every_unit_is_found_in_the_inlined_graph(outlined: Lowered, artifact: Path) -> None:
    assert [n.domain for n in outlined.model.graph if "W8A8" in n.op_type] == ["qcompile"] * 6
    found = prove_dispatch(artifact, target_named("cpu"), outlined.plan)
    assert found.proof.passed, found.proof.detail
    kernels = {u.node: u.kernel for u in found.units}
    assert [k for k in kernels.values() if k == "QLinearConv"] == ["QLinearConv"] * 3
    assert [k for k in kernels.values() if k == "QGemm"] == ["QGemm"] * 3


def test_without_a_plan_the_bodies_tell_what_is_expected(outlined: Lowered, artifact: Path) -> None:
    planned = prove_dispatch(artifact, target_named("cpu"), outlined.plan)
    read = prove_dispatch(artifact, target_named("cpu"))
    assert read.proof.passed, read.proof.detail
    assert sorted((u.op_type, u.form, u.kernel) for u in read.units) == sorted(
        (u.op_type, u.form, u.kernel) for u in planned.units
    )
    assert [f.node for f in read.kept_float] == []


def test_an_outlined_unit_that_runs_in_float_is_no_proved_one(outlined: Lowered, artifact: Path) -> None:
    """A Tanh before the conversion: the runtime inlines the body and has no integer kernel for it."""
    import onnx

    model = onnx.load(artifact)
    [function] = [f for f in model.functions if f.name == "ConvW8A8Requant"]
    [convolution] = [n for n in function.node if n.op_type == "Conv"]
    bent = onnx.helper.make_node("Tanh", ["straight"], list(convolution.output), name="bent")
    convolution.output[0] = "straight"
    function.node.insert(list(function.node).index(convolution) + 1, bent)
    onnx.save(model, artifact)
    found = prove_dispatch(artifact, target_named("cpu"), outlined.plan)
    assert found.proof.passed is False
    assert [u.kernel for u in found.units if u.proved is False] == ["FusedConv"] * 2


def test_diff_shows_what_the_units_are(outlined: Lowered, artifact: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    ir.save(outlined.float_model, tmp_path / "float.onnx")
    forms = {row.after[0].op_type: row.after[0].form for row in diff(tmp_path / "float.onnx", artifact).nodes}
    assert forms["qcompile::ConvW8A8BiasRequant"] == Form.FULL
    assert forms["qcompile::LinearW8A8Bias"] == Form.INPUTS


def test_a_target_with_float_biases_keeps_them_float(tmp_path: Path) -> None:
    samples = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(4)]
    weights = {name: array * 0.2 for name, array in WEIGHTS.items()}
    tensorrt = target_named("tensorrt")
    result = int8(MODEL, weights, samples, recipe=recipe(), target=tensorrt)
    assert find_faults(result.model, tensorrt) == []
    assert {f for _, f, _ in result.model.functions} >= {"ConvW8A8FloatBias", "LinearW8A8FloatBias"}
    assert min(result.sqnr("y"), result.sqnr("z")) > 20


def test_the_body_is_held_to_the_rules_of_the_target(outlined: Lowered) -> None:
    assert find_faults(outlined.model, target_named("cpu")) == []
    faults = find_faults(outlined.model, target_named("tensorrt"))
    assert "a DequantizeLinear on its bias" in {fault.rule for fault in faults}
