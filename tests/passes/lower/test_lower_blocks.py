"""Linear layers in blocks, as MatMulNBits: codes, layout, and what the kernel computes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.plan import Form, QuantizedWeight
from qcompile.compiler.specs import PerBlock, QuantSpec
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import candidates, unit_reading_float
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.lower.lower_blocks import LowerBlocks
from qcompile.passes.lower.precision import Precision
from tests.passes.int8 import Array, Lowered, check, head, int8, normal
from tests.passes.lower.weight_only import restored, weight_only

PER_TOKEN = ("place-dynamic.block-size=16",)


class ToBlocks(Pass):
    """Every linear unit in blocks."""

    name: ClassVar[str] = "to-blocks"
    phase: ClassVar[Phase] = Phase.QUANTIZE

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for candidate in candidates(model.graph, context.target):
            if candidate.node.name in context.plan.units and Form.BLOCKS in candidate.row.forms:
                unit = unit_reading_float(candidate, Form.BLOCKS, context.target, 16)
                context.plan.units[unit.node] = unit
        return False


def in_blocks(text: str, weights: dict[str, Array], samples: list[dict[str, Array]], *options: str) -> Lowered:
    return int8(text, weights, samples, *PER_TOKEN, *options, recipe=find_recipe("int8-dynamic"))


@pytest.mark.parametrize("shape", [(48,), (6, 48), (2, 3, 48)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_rank_with_and_without_bias(shape: tuple[int, ...], bias: bool) -> None:
    dims = ",".join(map(str, shape))
    out = ",".join(map(str, (*shape[:-1], 8)))
    body = "{ m = MatMul (x, w) y = Add (m, b) }" if bias else "{ y = MatMul (x, w) }"
    weights = {"w": normal(48, 8)} | ({"b": normal(8)} if bias else {})
    result = in_blocks(f"{head()} g (float[{dims}] x) => (float[{out}] y) {body}", weights, [{"x": normal(*shape)}])
    [product] = result.model.graph
    assert product.op_type == "MatMulNBits"
    assert [v.name if v else None for v in product.inputs][:3] == ["x", "w_blocks", "w_block_scale"]
    assert result.forms == {"y": "BLOCKS"}
    check(result, least=35)


@pytest.mark.parametrize("depth", [16, 40, 50, 7])
def test_codes_are_per_block_and_packed_by_output(depth: int) -> None:
    text = head() + f"g (float[6,{depth}] x) => (float[6,8] y) {{ y = Gemm <transB = 1> (x, w, b) }}"
    weight = normal(8, depth)
    result = in_blocks(text, {"w": weight, "b": normal(1, 8)}, [{"x": normal(6, depth)}])
    quantized = result.plan.weights["w", "Gemm_0"]
    assert quantized.params.spec.granularity == PerBlock(1, 16)
    count = -(-depth // 16)
    for block in range(count):
        part = weight[:, 16 * block : 16 * block + 16]
        np.testing.assert_allclose(quantized.params.scale[:, block], np.abs(part).max(axis=1) / 127, rtol=1e-6)
    packed = result.initializers()["w_blocks"].const_value
    assert packed is not None
    codes = packed.numpy().reshape(8, count * 16).astype(int) - 128
    np.testing.assert_array_equal(codes[:, :depth], quantized.codes)
    assert not codes[:, depth:].any()
    check(result, least=35)


def test_an_outlier_in_one_row_hurts_no_other() -> None:
    x = normal(6, 64)
    x[0] *= 1000
    text = head() + "g (float[6,64] x) => (float[6,8] y) { y = MatMul (x, w) }"
    weights = {"w": normal(64, 8)}
    per_token = in_blocks(text, weights, [{"x": x}])
    recipe = find_recipe("int8-dynamic")
    per_tensor = int8(text, weights, [{"x": x}], "place-dynamic.per-token=false", recipe=recipe)
    noise = [np.abs(r.plain["y"] - r.expected["y"])[1:].max() for r in (per_token, per_tensor)]
    assert noise[0] < noise[1] / 100
    weight = per_token.plan.weights["w", "MatMul_0"]
    exact = x @ dequantize(weight.codes, weight.params)
    np.testing.assert_allclose(per_token.plain["y"], exact, atol=0.01 * np.abs(exact).max())


def test_units_of_a_static_plan_can_become_blocks() -> None:
    """What a pass that chooses forms does: change the unit; codes, lowering and proofs follow."""
    steps = find_recipe("int8-static").passes()
    at = [p.name for p in steps].index("round-to-nearest")
    text = head() + (
        "g (float[6,48] x) => (float[6,8] y) { h = Gemm (x, u, c) r = Relu (h) m = MatMul (r, w) y = Add (m, b) }"
    )
    weights = {"u": normal(48, 48), "c": normal(48), "w": normal(48, 8), "b": normal(8)}
    result = int8(text, weights, [{"x": normal(6, 48)}], passes=[*steps[:at], ToBlocks(), *steps[at:]])
    assert set(result.forms.values()) == {Form.BLOCKS.name}
    assert [n.op_type for n in result.model.graph] == ["MatMulNBits", "Relu", "MatMulNBits"]
    assert result.plan.units["Gemm_0"].activation is None
    check(result, least=35)


LINEAR = head() + "g (float[6,{k}] x) => (float[6,10] y) {{ m = MatMul (x, w) y = Add (m, b) }}"


class HalfZeroPoints(Pass):
    """Zero points between two codes, as HQQ finds them."""

    name: ClassVar[str] = "half-zero-points"
    phase: ClassVar[Phase] = Phase.QUANTIZE

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for key, weight in context.plan.weights.items():
            moved = replace(weight.params, zero_point=weight.params.zero_point.astype(np.float32) + np.float32(0.5))
            context.plan.weights[key] = QuantizedWeight(moved, weight.codes)
        return False


def in_format(name: str, depth: int, block: int | None, symmetric: bool, form: Form, *methods: Pass) -> Lowered:
    spec = QuantSpec(FORMATS[name], symmetric=symmetric)
    weights = {"w": normal(depth, 10) + 0.3, "b": normal(10)}
    sample, text = {"x": normal(6, depth)}, LINEAR.format(k=depth)
    return weight_only(
        text, weights, sample, spec, block, LowerBlocks(), methods=methods, lowering=Lowering.BLOCKS, form=form
    )


def exact(result: Lowered) -> Array:
    """The product of the first sample with the values that the codes stand for."""
    w = restored(result)
    return normal(6, len(w)) @ w + normal(10)


@pytest.mark.parametrize("block", [16, 48, 128, None], ids=str)
@pytest.mark.parametrize("depth", [64, 50])
@pytest.mark.parametrize("name", ["int4", "uint4", "int8", "uint8"])
def test_the_kernel_computes_with_the_planned_values(name: str, depth: int, block: int | None) -> None:
    result = in_format(name, depth, block, name.startswith("i"), Form.WEIGHTS)
    np.testing.assert_allclose(result.optimized["y"], exact(result), rtol=0, atol=1e-4)
    [product] = result.model.graph
    assert product.name == f"MatMul_0_{name}"
    assert product.attributes.get_int("accuracy_level") == 1
    assert product.attributes.get_int("bits") == FORMATS[name].bits
    assert product.attributes.get_int("block_size") == {48: 16, None: 128}.get(block, block)
    assert (product.inputs[3] is not None) == name.startswith("u")
    check(result, least=10)


@pytest.mark.parametrize("name", ["int4", "uint4", "int8", "uint8"])
def test_inputs_become_int8_in_the_form_that_says_so(name: str) -> None:
    result = in_format(name, 64, 32, False, Form.BLOCKS)
    expected = exact(result)
    deviation = np.abs(result.optimized["y"] - expected).max() / np.abs(expected).max()
    assert 1e-4 < deviation < 2e-2
    assert next(iter(result.model.graph)).attributes.get_int("accuracy_level") == 4


def test_a_zero_point_between_two_codes_stays_one() -> None:
    result = in_format("uint4", 50, 16, False, Form.WEIGHTS, HalfZeroPoints())
    zero = next(iter(result.model.graph)).inputs[3]
    assert zero is not None
    assert zero.dtype is ir.DataType.FLOAT
    assert zero.shape == (10, 4)
    np.testing.assert_allclose(result.optimized["y"], exact(result), rtol=0, atol=1e-4)


def test_zero_points_between_two_codes_are_stored_as_the_scales_are() -> None:
    spec = QuantSpec(FORMATS["uint4"], scales=Scales.FLOAT16)
    weights, sample = {"w": normal(64, 10), "b": normal(10)}, {"x": normal(6, 64)}
    result = weight_only(
        LINEAR.format(k=64), weights, sample, spec, 32, LowerBlocks(),
        lowering=Lowering.BLOCKS, methods=[HalfZeroPoints()],
    )  # fmt: skip
    assert result.initializers()["w_block_zero_point"].dtype is ir.DataType.FLOAT16
    assert result.kernels() == ["MatMulNBits"]
    np.testing.assert_allclose(result.optimized["y"], exact(result), rtol=0, atol=1e-4)


def test_a_symmetric_weight_stores_no_zero_points_and_four_bits_are_half_a_byte() -> None:
    result = in_format("int4", 64, 32, True, Form.WEIGHTS)
    held = result.initializers()
    assert [v.name for v in held.values()] == ["b", "w_blocks", "w_block_scale"]
    assert held["w_blocks"].shape == (10, 2, 16)
    first = result.plan.weights["w", "MatMul_0"].codes[:2, 0].astype(int) + 8
    packed = held["w_blocks"].const_value
    assert packed is not None
    assert packed.numpy()[0, 0, 0] == first[0] | first[1] << 4


def test_half_scales_are_restored_when_the_model_loads() -> None:
    spec = QuantSpec(FORMATS["int4"], symmetric=True, full_range=True, scales=Scales.FLOAT16)
    weights, sample = {"w": normal(64, 10), "b": normal(10)}, {"x": normal(6, 64)}
    result = weight_only(LINEAR.format(k=64), weights, sample, spec, 32, LowerBlocks(), lowering=Lowering.BLOCKS)
    assert [n.op_type for n in result.model.graph] == ["Cast", "MatMulNBits"]
    assert result.kernels() == ["MatMulNBits"]
    assert result.initializers()["w_block_scale"].dtype is ir.DataType.FLOAT16
    assert (result.plan.weights["w", "MatMul_0"].params.scale < 0).any(), "full range: the scale may be negative"
    np.testing.assert_allclose(result.optimized["y"], exact(result), rtol=0, atol=1e-4)


def test_two_units_of_one_weight_share_codes_and_scales() -> None:
    text = head() + "g (float[6,64] x) => (float[6,10] y, float[6,10] z) { y = MatMul (x, w) z = Gemm (x, w) }"
    spec = QuantSpec(FORMATS["int4"], symmetric=True, scales=Scales.FLOAT16)
    result = weight_only(
        text, {"w": normal(64, 10)}, {"x": normal(6, 64)}, spec, 32, LowerBlocks(), lowering=Lowering.BLOCKS
    )
    assert sorted(result.initializers()) == ["w_block_scale", "w_blocks"]
    assert [n.op_type for n in result.model.graph] == ["Cast", "MatMulNBits", "MatMulNBits"]


def test_half_scales_are_read_as_they_are_where_the_graph_is_half() -> None:
    spec = QuantSpec(FORMATS["int4"], symmetric=True, scales=Scales.FLOAT16)
    weights, sample, cuda = {"w": normal(64, 10), "b": normal(10)}, {"x": normal(6, 64)}, target_named("cuda")
    result = weight_only(
        LINEAR.format(k=64), weights, sample, spec, 32, LowerBlocks(),
        lowering=Lowering.BLOCKS, after=[Precision()], target=cuda,
    )  # fmt: skip
    assert [n.op_type for n in result.model.graph] == ["Cast", "MatMulNBits", "Cast"], "input and output alone"
    assert {v.dtype for v in result.initializers().values()} == {ir.DataType.FLOAT16, ir.DataType.UINT8}
    np.testing.assert_allclose(result.plain["y"], exact(result), rtol=0, atol=2e-2)
