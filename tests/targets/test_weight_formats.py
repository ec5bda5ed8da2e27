"""Weights as codes for each target: on CUDA everything stays on the device, for TensorRT every pattern is legal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.legality import find_faults
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal
from tests.sweep.harness import Samples
from tests.targets import cuda_stub

MODEL = (
    head(21) + "g (int64[B,S] ids) => (float[B,S,96] logits) { e = Gather (table, ids) "
    "n = LayerNormalization <axis = -1> (e, g, c) u = MatMul (n, w) r = Relu (u) d = MatMul (r, v) b = Add (d, bias) "
    "s = Add (b, e) logits = MatMul (s, h) }"
)
WEIGHTS = {
    "table": normal(96, 64), "w": normal(64, 128) / 8, "v": normal(128, 64) / 11, "h": normal(64, 96) / 8,
    "bias": normal(64), "g": np.ones(64, np.float32), "c": np.zeros(64, np.float32),
}  # fmt: skip
ON_CUDA = {
    "int4": "qcompile::LinearW4A16",
    "uint4": "qcompile::LinearW4A16",
    "int8": "com.microsoft::MatMulNBits",
    "int2": "com.microsoft::MatMulNBits",
    "nf4": "com.microsoft::MatMulBnb4",
    "fp8-e4m3": "com.microsoft::MatMulBlockQuantizedFp8Weight",
    "nvfp4": "com.microsoft::MatMulBlockQuantizedFp4Weight",
    "mxfp4": "MatMul",
}


def compiled(format: str, target: str, *options: str) -> tuple[ir.Model, CompileContext]:
    symmetric = f"place-weights.symmetric={'false' if format == 'uint4' else 'true'}"
    wanted = [f"place-weights.format={format}", "place-weights.layers=[]", symmetric, *options]
    samples = Samples([{"ids": np.arange(12).reshape(1, 12)}])
    context = CompileContext(target_named(target), Path("unused"), calibration=samples, held_out=list(samples))
    model = model_of(MODEL, WEIGHTS)
    run_pipeline(find_recipe("int4-rtn").with_overrides(wanted).passes(), model, context)
    return model, context


@pytest.fixture(scope="module")
def on_cuda(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How each format is placed on the stub."""
    folder = tmp_path_factory.mktemp("cuda_stub")
    for format in ON_CUDA:
        ir.save(compiled(format, "cuda")[0], folder / f"{format}.onnx")
    found = cuda_stub.run("tests.targets.cuda_artifacts", folder, *(str(folder / f"{f}.onnx") for f in ON_CUDA))
    return {Path(name).stem: placement for name, placement in found.items()}


@pytest.mark.cuda_stub
@pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())
@pytest.mark.parametrize("format", ON_CUDA)
def test_everything_stays_on_the_device(format: str, on_cuda: dict[str, Any]) -> None:
    placement, wanted = on_cuda[format], ON_CUDA[format]
    for kind in ("free", "static"):
        assert placement[kind]["elsewhere"] == []
        assert not [node for node in placement[kind]["nodes"] if "Memcpy" in node]
    if wanted.startswith("qcompile"):
        assert "its body runs" in placement["proof"][1], "there is no library of kernels on the stub"
    else:
        assert placement["free"]["nodes"].count(wanted) == 3
        assert placement["proof"][0] is not False


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "cpu"])
def test_every_pattern_is_one_that_the_target_takes(target: str) -> None:
    for format in {"cuda": list(ON_CUDA), "tensorrt": ["int4"], "cpu": list(ON_CUDA)}[target]:
        model, _ = compiled(format, target)
        assert find_faults(model, target_named(target)) == []


def test_tensorrt_reads_blocks_behind_a_dequantize_linear() -> None:
    model, context = compiled("int4", "tensorrt")
    conversions = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert [n.op_type for n in model.graph if n.op_type == "MatMul"] == ["MatMul"] * 3
    assert len(conversions) == 3
    for conversion in conversions:
        codes, scale = conversion.inputs[0], constant(conversion.inputs[1])
        assert codes is not None
        assert scale is not None
        assert codes.dtype is ir.DataType.INT4
        assert conversion.attributes.get_int("block_size") in (64, 128)
        assert conversion.attributes.get_int("axis") == 0
        assert len(conversion.inputs) == 2, "symmetric"
        assert (scale > 0).all(), "TensorRT takes positive scales"
    assert all(unit.lowering is not None for unit in context.plan.units.values())


def test_other_kernels_than_the_planned_ones_fail_the_proof(tmp_path: Path) -> None:
    """MatMulNBits was asked for; a float product in its place is told from it."""
    model, context = compiled("int4", "cpu", "place-weights.activations=float")
    ir.save(model, tmp_path / "codes.onnx")
    assert prove_dispatch(tmp_path / "codes.onnx", context.target, context.plan).proof.passed
    ir.save(model_of(MODEL, WEIGHTS), tmp_path / "float.onnx")
    found = prove_dispatch(tmp_path / "float.onnx", context.target, context.plan)
    assert found.proof.passed is False
    assert "not as MatMulNBits" in found.proof.detail
