"""The proof of sparsity: patterns counted in what each format really stores, lost ones named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.graph import nodes
from qcompile.compiler.passes import Pass
from qcompile.compiler.report import UnitRecord
from qcompile.compiler.stored_zeros import nonzeros
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.sparsity import layer_patterns, prove_sparsity
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal
from tests.passes.llama import WIDTH
from tests.passes.quantize.test_zeros_kept import pruned, sparse_llama
from tests.sweep.harness import compile_in_memory

SAMPLES = [{"x": normal(1, 8, WIDTH, seed=i)} for i in range(4)]


def proof(passes: Sequence[Pass], target: str = "cpu") -> tuple[bool | None, str]:
    model = sparse_llama()
    made = compile_in_memory(ir.to_proto(model), SAMPLES, passes, target_named(target))
    artifact = ir.from_proto(onnx.load_from_string(made.data))
    assert made.context.unquantized is not None
    wanted = layer_patterns(made.context.unquantized)
    found = prove_sparsity(artifact, wanted, made.context.plan.units, target_named(target))
    return found.passed, found.detail


FORMATS = ["int4", "uint4", "int8", "uint8", "int2", "nf4", "fp8-e4m3", "mxfp4", "mxfp6-e3m2", "nvfp4"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_stored_weights_on_the_cpu(fmt: str) -> None:
    recipe = find_recipe("int4-rtn").with_overrides([f"place-weights.format={fmt}", "place-weights.layers=[]"])
    passed, detail = proof(recipe.passes())
    assert passed, detail
    assert "7 of 7 weights with a pattern have it as they are stored: 7 2:4" in detail
    assert "on cpu they run as dense ones" in detail


@pytest.mark.parametrize(
    ("recipe", "target", "said"),
    [
        ("int8-dynamic", "cpu", "run as dense ones"),
        ("int8-static", "tensorrt", "TensorRT takes kernels without zeros where they are faster"),
        ("fp8-static", "tensorrt", "run as dense ones"),
        (
            "int8-static",
            "cuda",
            "of 5 are Linear24 operators, whose kernels on CUDAExecutionProvider leave the zeros out",
        ),
        ("int8-dynamic", "cuda", "are Linear24 operators"),
        ("fp8-dynamic", "cuda", "are Linear24 operators"),
        ("nf4", "cuda", "run as dense ones"),
        ("int4-rtn", "cuda", "run as dense ones"),
        ("fp8-weight-only", "cuda", "run as dense ones"),
        ("nvfp4", "cuda", "run as dense ones"),
    ],
)
def test_what_each_target_stores_and_runs(recipe: str, target: str, said: str) -> None:
    passed, detail = proof(find_recipe(recipe).passes(), target)
    assert passed, detail
    assert said in detail


def test_kernels_of_an_engine_that_skip_zeros_are_counted() -> None:
    weights = {"w": pruned(normal(8, 8))}
    model = model_of(head() + "g (float[N,8] x) => (float[N,8] y) { y = MatMul (x, w) }", weights)
    kernels = ["sparse int8 gemm", "int8 gemm", None]
    records = [UnitRecord(node=f"n{i}", op_type="MatMul", form="", kernel=k) for i, k in enumerate(kernels)]
    found = prove_sparsity(model, layer_patterns(model), {}, target_named("tensorrt"), records)
    assert "(trt_sparsity_enable); the engine built here names one for 1 of 3 units" in found.detail


def test_a_lost_pattern_is_named() -> None:
    text = head() + "g (float[N,8] x) => (float[N,6] y) { h = MatMul (x, w) y = MatMul (h, v) }"
    weights = {"w": pruned(normal(8, 8)), "v": pruned(normal(8, 6))}
    exact = model_of(text, weights)
    for i, node in enumerate(exact.graph):
        node.name = f"n{i}"
    wanted = layer_patterns(exact)
    assert [str(p) for p in wanted.values()] == ["2:4", "2:4"]
    weights["v"] = weights["v"] + np.float32(0.1)
    other = model_of(text, weights)
    for i, node in enumerate(other.graph):
        node.name = f"n{i}"
    found = prove_sparsity(other, wanted, {}, target_named("cpu"))
    assert found.passed is False
    assert "1 of 2 weights with a pattern have it as they are stored: 1 2:4; lost: n1 (2:4; 100% of its" in found.detail
    other.graph.remove(other.graph[1])
    assert "n1 (2:4; its weight is not found" in prove_sparsity(other, wanted, {}, target_named("cpu")).detail


def test_zero_points_between_codes_are_seen() -> None:
    """Blocks of another tool: codes 3 around a zero point of 3.5 stand for no zero."""
    packed, scale = np.full((2, 1, 16), 0x33, np.uint8), np.ones((2, 1), np.float32)
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
      g (float[N,32] x) => (float[N,2] y) {
        y = com.microsoft.MatMulNBits <K = 32, N = 2, bits = 4, block_size = 32> (x, w, s, z) }"""
    for zero, filled in ((3.5, 1.0), (3.0, 0.0)):
        given = {"w": packed, "s": scale, "z": np.full(2, zero, np.float32)}
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in given.items())
        model = ir.from_proto(proto)
        mask = nonzeros(next(iter(nodes(model))), model)
        assert mask is not None
        assert mask.shape == (2, 32)
        assert mask.mean() == filled
