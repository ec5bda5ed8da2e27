"""Which weights are stored as codes: formats, blocks, layers by name and role, ties, and the reasons of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.params import dequantize
from qcompile.compiler.plan import Form
from qcompile.compiler.specs import PerBlock, PerChannel
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Lowering
from qcompile.errors import QCompileError, RecipeError, TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import Array, Lowered, check, head, int8, normal

RTN = find_recipe("int4-rtn")
MLP = (
    head(21)
    + "g (float[6,64] x) => (float[6,40] y) { h = MatMul (x, w) k = Relu (h) m = MatMul (k, v) y = Add (m, b) }"
)
WEIGHTS = {"w": normal(64, 64), "v": normal(64, 40), "b": normal(40)}
SAMPLES = [{"x": normal(6, 64)}]


def stored(
    text: str, weights: dict[str, Array], samples: list[dict[str, Array]], *options: str, target: str = "cpu"
) -> Lowered:
    named = [f"place-weights.{option}" for option in options]
    return int8(text, weights, samples, *named, recipe=RTN, target=target_named(target))


def mlp(*options: str, **more: Any) -> Lowered:
    return stored(MLP, WEIGHTS, SAMPLES, *options, **more)


def error(result: Lowered) -> float:
    """Deviation of what the runtime computes from the product of the restored weights."""
    w, v = (dequantize(q.codes, q.params) for q in result.plan.weights.values())
    exact = np.maximum(SAMPLES[0]["x"] @ w, 0) @ v + WEIGHTS["b"]
    return float(np.abs(result.optimized["y"] - exact).max() / np.abs(exact).max())


def test_the_recipe_stores_4_bits_and_a_head_of_8() -> None:
    result = mlp()
    specs = [unit.weight_spec for unit in result.plan.units.values()]
    assert [str(s) for s in specs] == [
        "int4 asymmetric per block of 32 (axis 0), fp16 scales",
        "int4 asymmetric per block of 32 (axis 0), fp16 scales",
    ], "both belong to the mlp"
    assert result.forms == {"h": "BLOCKS", "y": "BLOCKS"}
    assert result.kernels().count("MatMulNBits") == 2
    assert error(result) < 0.01


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.bits <= 8])
def test_every_format(name: str) -> None:
    """Where no kernel reads it, the weights are restored when the model loads, and the report says so."""
    result = mlp(f"format={name}")
    fmt = FORMATS[name]
    assert {u.weight_spec.format for u in result.plan.units.values() if u.weight_spec} == {fmt}
    emulated = {u.lowering for u in result.plan.units.values()} == {Lowering.EMULATED}
    assert emulated == (not fmt.is_integer)
    assert any("smaller on disk, not faster" in n for n in result.context.notices) == emulated
    assert error(result) < (1e-5 if emulated else 0.02)


@pytest.mark.parametrize(
    ("size", "depth", "block"), [(128, 64, 64), (32, 20, 32), (256, 7, 16), (16, 64, 16), (64, 100, 64)]
)
def test_a_block_longer_than_a_channel_becomes_the_shortest_that_holds_it(size: int, depth: int, block: int) -> None:
    text = head(21) + f"g (float[6,{depth}] x) => (float[6,8] y) {{ y = MatMul (x, w) }}"
    result = stored(text, {"w": normal(depth, 8)}, [{"x": normal(6, depth)}], f"block-size={size}", "layers=[]")
    [unit] = result.plan.units.values()
    assert unit.weight_spec is not None
    assert unit.weight_spec.granularity == PerBlock(0, block)


def test_options_reach_the_grid() -> None:
    plan = mlp("format=uint4", "block-size=channel", "activations=float").plan
    for unit in plan.units.values():
        assert unit.form is Form.WEIGHTS
        assert unit.weight_spec is not None
        assert (unit.weight_spec.granularity, unit.weight_spec.symmetric) == (PerChannel(1), False)
        assert unit.weight_spec.scales is Scales.FLOAT16
    assert mlp("format=int4", "symmetric=true").plan.units["MatMul_0"].weight_spec.full_range  # type: ignore[union-attr]
    restored = mlp("format=int8", "activations=float").plan.units["MatMul_0"]
    assert restored.lowering is Lowering.EMULATED, "the kernel for float inputs is 40 times slower"


def test_entries_apply_in_order() -> None:
    first, second = "{role: mlp, format: int8, block-size: 16}", "{name: '*_2', block-size: 128}"
    plan = mlp(f"layers=[{first}, {second}, {{name: MatMul_0, keep-float: true}}]", "format=uint4").plan
    assert list(plan.units) == ["MatMul_2"]
    assert str(plan.units["MatMul_2"].weight_spec) == "int8 symmetric per block of 64 (axis 0), fp16 scales"
    assert plan.kept_float["MatMul_0"] == "kept float by the option layers (name 'MatMul_0')"
    assert plan.pinned == {"MatMul_0"}


def test_a_role_that_no_layer_has_is_told_and_a_name_is_an_error() -> None:
    assert any("no layer of this model has the role head" in n for n in mlp().context.notices)
    with pytest.raises(RecipeError, match=r"layers\[0\]: no layer has the name 'nothing'"):
        mlp("layers=[{name: nothing, format: int8}]")


@pytest.mark.parametrize(
    ("option", "target", "kind", "expected"),
    [
        ("format=int3", "cpu", RecipeError, "'format'"),
        ("block-size=48", "cpu", RecipeError, "'block-size'"),
        ("layers=[{format: int8}]", "cpu", RecipeError, "say which layers"),
        ("layers=[{rol: head}]", "cpu", RecipeError, "'layers.0.rol' is not an option; did you mean 'role'"),
        ("layers=[{role: heads}]", "cpu", RecipeError, "'layers.0.role'"),
        ("format=nf4", "tensorrt", TargetError, "stores no nf4 weights"),
        ("format=uint4", "tensorrt", TargetError, "it stores int4 in blocks of 16, 32, 64, 128 for MatMul and Gemm"),
        ("activations=int8", "cuda", TargetError, "stores no int4 weights and int8 inputs"),
    ],
)
def test_bad_options(option: str, target: str, kind: type[QCompileError], expected: str) -> None:
    with pytest.raises(kind) as refused:
        mlp(option, target=target)
    assert expected in str(refused.value)


def test_a_block_size_that_a_format_does_not_have() -> None:
    with pytest.raises(TargetError, match="stores no mxfp4 weights with block-size 16"):
        mlp("format=mxfp4", "block-size=16")


def test_what_has_no_weight_to_store_says_why() -> None:
    text = (
        head(21)
        + """g (float[2,6,64] x, float[64,8] u) => (float[2,6,8] a, float[2,6,8] b, float[2,6,6] c, float[2,6,8] d) {
      a = MatMul (x, u)
      t = Transpose (v)
      b = MatMul (x, t)
      i = Identity (x) j = Transpose <perm = [0, 2, 1]> (i) c = MatMul (x, j)
      d = MatMul (x, experts)
    }"""
    )
    sample = {"x": normal(2, 6, 64), "u": normal(64, 8)}
    plan = stored(text, {"v": normal(8, 64), "experts": normal(2, 64, 8)}, [sample], "layers=[]").plan
    assert [u.output for u in plan.units.values()] == ["b"], "the Transpose of a constant is one"
    assert list(plan.kept_float.values()) == [
        "its weight is not one matrix: no kernel reads codes of a stack of them, as of experts",
        "its weight is an input of the model",
        "it multiplies two activations: there is no weight to store",
    ]


def test_a_cast_weight_is_a_weight() -> None:
    """As exporters of half-precision checkpoints write it, above the size that is folded otherwise."""
    text = head(21) + "g (float[6,512] x) => (float[6,1024] y) { w = Cast <to = 1> (h) y = MatMul (x, w) }"
    weights = {"h": normal(512, 1024).astype(np.float16)}
    assert "MatMul_1" in stored(text, weights, [{"x": normal(6, 512)}], "layers=[]").plan.units


TABLE = normal(40, 64)
IDS = [{"ids": np.arange(6).reshape(1, 6)}]
TRANSPOSED = head(21) + (
    "g (int64[1,6] ids) => (float[1,6,40] y) { e = Gather (table, ids) h = MatMul (e, w) y = MatMul (h, v) }"
)
SAME = head(21) + (
    "g (int64[1,6] ids) => (float[6,40] y) "
    "{ e = Gather (table, ids) f = Reshape (e, s) h = MatMul (f, w) y = Gemm <transB = 1> (h, table) }"
)
TIED = {
    "transposed": (TRANSPOSED, {"table": TABLE, "w": normal(64, 64), "v": TABLE.T.copy()}),
    "same": (SAME, {"table": TABLE, "w": normal(64, 64), "s": np.array([-1, 64])}),
}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("head_of", ["int8", "int4"])
def test_a_table_tied_to_the_head_is_stored_once(kind: str, head_of: str) -> None:
    result = stored(*TIED[kind], IDS, f"layers=[{{role: head, format: {head_of}}}]")
    units = list(result.plan.units.values())
    assert units[0].tied == units[-1].node
    assert {str(u.weight_spec.format.name) for u in (units[0], units[-1]) if u.weight_spec} == {head_of}
    large = [v for v in result.initializers().values() if v.const_value is not None and v.const_value.nbytes >= 1000]
    assert len(large) == 2, "w, and one table"
    assert result.kernels().count("GatherBlockQuantized") == 1
    expected, got = result.expected["y"], result.optimized["y"]
    assert 10 * np.log10(np.square(expected).mean() / np.square(got - expected).mean()) > 15


def test_a_table_that_the_recipe_wants_otherwise_is_stored_apart() -> None:
    entries = "[{role: head, format: int8}, {role: embedding, format: int4}]"
    result = stored(*TIED["transposed"], IDS, f"layers={entries}")
    assert all(u.tied is None for u in result.plan.units.values())
    assert any("they are stored apart, as int4" in n for n in result.context.notices)


def test_two_layers_of_one_weight_share_its_codes() -> None:
    text = head(21) + (
        "g (float[6,32] x) => (float[6,32] a, float[6,32] b, float[6,32] c) "
        "{ a = MatMul (x, w) b = MatMul (a, w) c = Gemm <transB = 1> (x, w) }"
    )
    result = stored(text, {"w": normal(32, 32)}, [{"x": normal(6, 32)}], "layers=[]")
    assert sum(name.endswith("_blocks") for name in result.initializers()) == 2
    assert any(n.startswith("weight 'w' is stored 2 times: as int4") for n in result.context.notices)


@pytest.mark.parametrize("name", ["int4", "uint8", "nf4", "mxfp8-e4m3"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_in_blocks_of_input_channels(name: str, kernel: int) -> None:
    """Restored when the model loads; depthwise ones, which have one channel each, in 8 bits with a scale for each."""
    text = head(21) + (
        "g (float[1,40,6,6] x) => (float[1,40,M,N] y, float[1,40,6,6] z) "
        "{ c = Conv (x, w, b) y = Relu (c) z = Conv <group = 40> (x, d) }"
    )
    weights = {"w": normal(40, 40, kernel, kernel), "b": normal(40), "d": normal(40, 1, 1, 1)}
    result = stored(text, weights, [{"x": normal(1, 40, 6, 6)}], f"format={name}", "layers=[]")
    assert [u.lowering for u in result.plan.units.values()] == [Lowering.EMULATED] * (2 if name == "uint8" else 1)
    spec = result.plan.units["Conv_0"].weight_spec
    assert spec is not None
    assert isinstance(spec.granularity, PerBlock)
    assert spec.granularity.axis == 1
    if name != "uint8":
        assert "too few for a block" in result.plan.kept_float["Conv_2"]
    expected, got = result.expected["y"], result.optimized["y"]
    assert 10 * np.log10(np.square(expected).mean() / np.square(got - expected).mean()) > 17


def test_tables_of_positions_stay_float() -> None:
    text = (
        head(21)
        + """g (int64[1,6] ids) => (float[1,6,64] y) {
      e = Gather (table, ids)
      n = Shape <start = 1> (ids) z = Squeeze (n) r = Range (zero, z, one)
      p = Gather (positions, r)
      y = Add (e, p)
    }"""
    )
    weights = {"table": TABLE, "positions": normal(6, 64), "zero": np.array(0), "one": np.array(1)}
    text = text.replace("int64[1,6]", "int64[1,N]").replace("float[1,6,64]", "float[1,N,64]")
    result = stored(text, weights, IDS, "layers=[]")
    assert [u.op_type for u in result.plan.units.values()] == ["Gather"]
    assert "looked up by positions" in result.plan.kept_float["Gather_4"]


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["int4", "uint4", "int8", "uint8"]),
    depth=st.integers(1, 70),
    columns=st.integers(1, 9),
    size=st.sampled_from([16, 32, 64, 128, "channel"]),
    gemm=st.booleans(),
)
def test_any_shape_computes_what_the_codes_say(name: str, depth: int, columns: int, size: Any, gemm: bool) -> None:
    body = "y = Gemm <transB = 1> (x, w)" if gemm else "y = MatMul (x, w)"
    text = head(21) + f"g (float[3,{depth}] x) => (float[3,{columns}] y) {{ {body} }}"
    weight, x = normal(columns, depth) if gemm else normal(depth, columns), normal(3, depth)
    result = stored(text, {"w": weight}, [{"x": x}], f"format={name}", f"block-size={size}", "layers=[]")
    [quantized] = result.plan.weights.values()
    restored = dequantize(quantized.codes, quantized.params)
    exact = x @ (restored.T if gemm else restored)
    scale = np.abs(x).max() * np.abs(restored).max() * depth
    assert np.abs(result.optimized["y"] - exact).max() <= 0.02 * scale


def test_the_proofs_hold() -> None:
    check_model = mlp("format=uint4", "activations=float", "layers=[]")
    check_model.plain = check_model.optimized
    check(check_model, least=12)
