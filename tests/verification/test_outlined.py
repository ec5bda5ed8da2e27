"""Units that are operators with a function body: the runtime inlines the body, and the proofs must see through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.compiler.context import SilentProgress
from qcompile.compiler.diff import diff
from qcompile.compiler.plan import Form
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.gains import measure_gains
from qcompile.compiler.verification.layers import measure_layers
from qcompile.compiler.verification.legality import find_faults
from qcompile.compiler.verification.reference import Reference
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.runtime.providers import why_not_loaded
from tests.passes.int8 import Lowered, head, int8, normal

CPU, CUDA = target_named("cpu"), target_named("cuda")
WEIGHTS = {"w": normal(16, 64) / 4, "b": normal(64), "v": normal(64, 8) / 8, "c": normal(8)}
MODEL = (
    head()
    + """g (float[N, 16] x) => (float[N, 8] y) {
    m = MatMul (x, w)
    a = Add (m, b)
    r = Relu (a)
    y = Gemm (r, v, c)
}"""
)
SAMPLES = [{"x": normal(5, 16, seed=i)} for i in range(4)]


@pytest.fixture(scope="module", params=["int8-static", "int8-dynamic", "fp8-static", "fp8-dynamic"])
def outlined(request: pytest.FixtureRequest) -> Lowered:
    return int8(MODEL, WEIGHTS, SAMPLES, target=CUDA, recipe=find_recipe(request.param))


@pytest.fixture
def artifact(outlined: Lowered, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(outlined.data)
    return path


def test_on_the_cpu_the_bodies_are_what_runs(outlined: Lowered, artifact: Path) -> None:
    found = prove_dispatch(artifact, CPU, outlined.plan)
    fp8 = any("E4M3" in n.op_type for n in outlined.model.graph)
    assert found.proof.passed is not fp8, "an FP8 body computes in float there"
    assert [u.kernel in ("MatMul", "FusedMatMul", "Gemm") if fp8 else u.kernel == "MatMulInteger" for u in found.units]
    assert [u.node for u in found.units] == list(outlined.plan.units)


@pytest.mark.skipif(not why_not_loaded("CUDAExecutionProvider"), reason="there is a GPU here")
def test_without_a_gpu_the_proof_says_what_was_seen_and_where(outlined: Lowered, artifact: Path) -> None:
    found = prove_dispatch(artifact, CUDA, outlined.plan)
    assert found.proof.passed is None
    assert "on the CPU provider the bodies run" in found.proof.detail
    assert "BiasRelu" in found.proof.detail
    assert [u.proved for u in found.units] == [None, None]
    assert all("on CUDAExecutionProvider it is qcompile::Linear" in u.reason for u in found.units)


def test_without_a_plan_the_calls_tell_what_is_expected(outlined: Lowered, artifact: Path) -> None:
    read, planned = (prove_dispatch(artifact, CUDA, plan).units for plan in (None, outlined.plan))
    assert [(u.form, u.kernel) for u in read] == [(u.form, u.kernel) for u in planned]


def test_a_call_that_vanished_is_no_proved_unit(outlined: Lowered, artifact: Path) -> None:
    model = onnx.load(artifact)
    [call] = [n for n in model.graph.node if "BiasRelu" in n.op_type]
    call.name = "somebody else"
    onnx.save(model, artifact)
    found = prove_dispatch(artifact, CPU, outlined.plan)
    assert found.proof.passed is False
    assert outlined.plan.units[found.units[0].node].weight == "w"


def test_the_noise_of_each_call_is_measured(outlined: Lowered, artifact: Path) -> None:
    """Also of the one that swallowed a Relu: its result is compared with the Relu's."""
    reference = Reference.of_state(outlined.float_model)
    layers, skipped = measure_layers(reference, artifact, outlined.plan.units, SAMPLES, SilentProgress())
    assert skipped == ""
    assert [layer.value for layer in layers] == ["r", "y"]
    assert all(layer.isolated_sqnr is not None and layer.isolated_sqnr > 25 for layer in layers)
    assert all(np.isfinite(layer.sqnr or np.nan) for layer in layers)


def test_what_float_layers_would_buy_is_measured(outlined: Lowered, artifact: Path) -> None:
    """The float Gemm reads what the artifact has in half precision. Where a Relu was swallowed no value is left to
    switch."""
    reference = Reference.of_state(outlined.float_model)
    layers, _ = measure_layers(reference, artifact, outlined.plan.units, SAMPLES, SilentProgress())
    session = onnxruntime.InferenceSession(ir.to_proto(outlined.float_model).SerializeToString())
    expected = [{"y": session.run(["y"], sample)[0]} for sample in SAMPLES]
    gains = measure_gains(
        reference, artifact, outlined.plan.units, layers, SAMPLES, expected, outlined.plan, SilentProgress()
    )
    assert gains is not None
    assert [g.node for g in gains.gains] == ["Gemm_3"]
    assert gains.sqnr > 25
    assert gains.gains[0].gain > 0


def test_diff_shows_what_the_units_are(outlined: Lowered, artifact: Path, tmp_path: Path) -> None:
    ir.save(outlined.float_model, tmp_path / "float.onnx")
    shown = {after.op_type: after.form for row in diff(tmp_path / "float.onnx", artifact).nodes for after in row.after}
    forms = {form for op_type, form in shown.items() if op_type.startswith("qcompile::Linear")}
    dynamic = any(n.op_type.startswith("QuantizeRows") for n in outlined.model.graph)
    assert forms == {Form.DYNAMIC if dynamic else Form.INPUTS}


def test_the_artifact_keeps_the_rules_of_its_target(outlined: Lowered) -> None:
    assert find_faults(outlined.model, CUDA) == []
