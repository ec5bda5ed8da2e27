"""Norms that write codes themselves: every spelling, every reader, the same codes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from qcompile.compiler.graph import nodes, opset
from qcompile.compiler.operators import quantize_rows
from qcompile.compiler.printer import print_model
from qcompile.compiler.provenance import sources, stamp_originals
from qcompile.passes.lower.fuse_norm_quant import FuseNormQuant
from tests.golden import assert_golden
from tests.passes.harness import NAMED, Arrays, assert_close, context, model_of, outputs, run

INT8, E4M3 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
K = 12

WEIGHTS: Arrays = {
    "gamma": np.random.default_rng(1).uniform(0.5, 2, K).astype(np.float32),
    "beta": np.random.default_rng(2).standard_normal(K).astype(np.float32),
    "tall": np.random.default_rng(3).uniform(0.5, 2, (1, 1, K)).astype(np.float32),
    "two": np.array(2, np.float32),
    "half": np.array(0.5, np.float32),
    "one": np.array(1, np.float32),
    "three": np.array(3, np.float32),
    "eps": np.array(1e-5, np.float32),
    "last": np.array([-1], np.int64),
    "middle": np.array([1], np.int64),
    "yes": np.array(True),
}
FEEDS = {name: np.random.default_rng(i).standard_normal((2, 5, K)).astype(np.float32) for i, name in enumerate("ab")}

ROOT = "m = ReduceMean (s, last) e = Add (m, eps) r = Sqrt (e)"
RMS = f"s = Pow (x, two) {ROOT} u = Div (x, r) y = Mul (u, gamma)"
CENTRED = f"mean = ReduceMean (x, last) d = Sub (x, mean) s = Mul (d, d) {ROOT} u = Div (d, r)"

RMS_SPELLINGS = {
    "Pow and Div": RMS,
    "gamma first": f"s = Pow (x, two) {ROOT} u = Div (x, r) y = Mul (gamma, u)",
    "a square and a reciprocal": f"s = Mul (x, x) {ROOT} i = Reciprocal (r) u = Mul (x, i) y = Mul (u, gamma)",
    "one over": f"s = Mul (x, x) {ROOT} i = Div (one, r) u = Mul (i, x) y = Mul (u, tall)",
    "epsilon first": "s = Mul (x, x) m = ReduceMean (s, last) e = Add (eps, m) r = Sqrt (e) y = Div (x, r)",
    "one operator": "y = RMSNormalization <axis = -1, epsilon = 0.0001> (x, gamma)",
}
LAYER_SPELLINGS = {
    "one operator": "y = LayerNormalization <axis = -1, epsilon = 0.001> (x, gamma, beta)",
    "axis by number, no beta": "y = LayerNormalization <axis = 2> (x, gamma)",
    "written out": f"{CENTRED} g = Mul (u, gamma) y = Add (g, beta)",
    "constants first": f"{CENTRED} g = Mul (tall, u) y = Add (beta, g)",
    "neither": f"{CENTRED} y = Identity (u)",
    "the difference twice": (
        f"mean = ReduceMean (x, last) d = Sub (x, mean) d2 = Sub (x, mean) s = Pow (d, two) {ROOT} "
        "u = Div (d2, r) g = Mul (u, gamma) y = Add (g, beta)"
    ),
}
NO_NORMS = {
    "a cube": RMS.replace("two", "three"),
    "another axis": RMS.replace("(s, last)", "(s, middle)"),
    "no mean": RMS.replace("ReduceMean", "ReduceSum"),
    "divided by another root": f"s = Pow (b, two) {ROOT} u = Div (x, r) y = Mul (u, gamma)",
    "a norm over two axes": "y = LayerNormalization <axis = 1> (x, wide)",
    "its inside is read": RMS.replace("y = Mul (u, gamma)", "g = Mul (u, gamma) y = Add (g, u)"),
    "a product of activations": RMS.replace("(u, gamma)", "(u, b)"),
}


def model(body: str, *rows: str, codes: ir.DataType = INT8, results: Sequence[str] = (), version: int = 23) -> ir.Model:
    """A graph of `body` with QuantizeRows behind `rows`; codes (as float), scales and `results` leave it."""
    returned = ", ".join(f"float[B,S,{K}] {name}" for name in dict.fromkeys([*results, *rows]))
    text = (
        f'<ir_version: 11, opset_import: ["": {version}]> g (float[B,S,{K}] a, float[B,S,{K}] b) => ({returned}) '
        f"{{ {body} }}"
    )
    weights = WEIGHTS | {"wide": np.ones((5, K), np.float32)}
    made = model_of(text, {name: array for name, array in weights.items() if name in body})
    run(made, *NAMED)
    graph = made.graph
    kept = [v for v in graph.outputs if v.name in results]
    read = {str(v.name): v for n in graph for v in n.outputs}
    graph.outputs[:] = kept
    stamp_originals(made)
    for name in rows:
        operator = quantize_rows(codes=codes)
        operator.declare(made)
        node = operator.node([read[name]], name=f"{name}_rows")
        as_float = ir.node("Cast", [node.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_codes")
        as_float.outputs[0].name, as_float.outputs[0].type = f"{name}_codes", ir.TensorType(ir.DataType.FLOAT)
        as_float.outputs[0].shape = node.outputs[0].shape
        graph.extend([node, as_float])
        graph.outputs.extend([as_float.outputs[0], node.outputs[1]])
    return made


def main_graph(built: ir.Model) -> str:
    """As the printer shows it, without the bodies of operators."""
    return print_model(built, provenance=True).split("graph qcompile::")[0]


def fuse(built: ir.Model) -> bool:
    return FuseNormQuant().run(built, context())


def fused(built: ir.Model, feeds: Arrays = FEEDS) -> list[str]:
    """Run the pass: codes differ at rounding ties at most, one element in a thousand, everything else not at all."""
    names = [str(v.name) for v in built.graph.outputs]
    expected = outputs(built, feeds)
    assert fuse(built)
    onnx.checker.check_model(ir.to_proto(built))
    assert [v.name for v in built.graph.outputs] == names
    found = outputs(built, feeds)
    for name, before, after in zip(names, expected, found, strict=True):
        if name.endswith("_codes"):
            assert np.mean(before != after) <= 1e-3
            assert np.abs(before - after).max(initial=0) <= max(1, np.abs(before).max() / 8)
        elif name.endswith("x_scale"):
            np.testing.assert_allclose(after, before, rtol=1e-6)
        else:
            assert_close([before], [after], 1e-6)
    assert not fuse(built), "a second run must find nothing to do"
    return [n.op_type for n in nodes(built) if n.op_type != "Cast"]


@pytest.mark.parametrize("codes", [INT8, E4M3])
@pytest.mark.parametrize("body", RMS_SPELLINGS.values(), ids=RMS_SPELLINGS.keys())
def test_every_rms_norm(body: str, codes: ir.DataType) -> None:
    expected = "RMSNormQuant" + ("E4M3" if codes is E4M3 else "")
    assert fused(model(f"x = Neg (a) {body}", "y", codes=codes)) == ["Neg", expected]


@pytest.mark.parametrize("body", LAYER_SPELLINGS.values(), ids=LAYER_SPELLINGS.keys())
def test_every_layer_norm(body: str) -> None:
    built = model(f"x = Neg (a) {body.replace('y = Identity (u)', '')}", "u" if "Identity" in body else "y")
    assert fused(built) == ["Neg", "LayerNormQuant"]


@pytest.mark.parametrize("body", NO_NORMS.values(), ids=NO_NORMS.keys())
def test_what_is_no_norm_stays(body: str) -> None:
    assert not fuse(model(f"x = Neg (a) {body}", "y"))


def test_golden_with_the_residual_whose_sum_goes_on() -> None:
    built = model(
        "x = Add (a, b) y = LayerNormalization <axis = -1> (x, gamma, beta) z = Add (x, y)", "y", results=["z"]
    )
    before = main_graph(built)
    assert fused(built) == ["AddLayerNormQuant", "Add"]
    assert_golden("passes/fuse-norm-quant", f"# before\n{before}\n# after\n{main_graph(built)}")
    made = next(n for n in nodes(built) if n.op_type == "AddLayerNormQuant")
    assert [bool(v.name) for v in made.outputs] == [True] * 4
    assert sources(made), "it stands for the nodes it came from"


def test_a_norm_or_a_sum_that_nobody_else_reads_is_never_written() -> None:
    built = model("x = Add (a, b) " + RMS, "y")
    assert fused(built) == ["AddRMSNormQuant"]
    assert [v.name for v in next(iter(built.graph)).outputs] == ["", "", "y_rows.x_q", "y_rows.x_scale"]


def test_a_sum_that_leaves_the_graph_keeps_its_name() -> None:
    built = model("x = Add (a, b) " + RMS, "y", results=["x", "y"])
    assert fused(built) == ["AddRMSNormQuant"]


def test_a_sum_that_broadcasts_is_added_before() -> None:
    assert fused(model("n = ReduceMax <keepdims = 1> (b, last) x = Add (a, n) " + RMS, "y"))[-2:] == [
        "Add",
        "RMSNormQuant",
    ]


def test_two_norms_of_one_sum_share_it() -> None:
    other = re.sub(r"\b([smeruy])\b", r"\g<1>2", RMS)
    built = model(f"x = Add (a, b) {RMS} {other}", "y", "y2")
    assert sorted(fused(built)) == ["AddRMSNormQuant", "RMSNormQuant"]


def test_codes_that_an_opset_does_not_know_stay_apart() -> None:
    body = "x = Neg (a) s = Pow (x, two) m = ReduceMean <axes = [-1]> (s) e = Add (m, eps) r = Sqrt (e) y = Div (x, r)"
    built = model(body, "y", version=13)
    assert opset(built) < 17
    assert not fuse(built)


def test_without_quantized_rows_nothing_happens() -> None:
    assert not fuse(model("x = Add (a, b) " + RMS, results=["y"]))


@settings(max_examples=30, deadline=None)
@given(
    body=st.sampled_from([*RMS_SPELLINGS.values(), *(b for n, b in LAYER_SPELLINGS.items() if n != "neither")]),
    add=st.booleans(),
    read=st.sets(st.sampled_from(["x", "y"])),
    codes=st.sampled_from([INT8, E4M3]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_any_norm_gives_the_same_codes(
    body: str, add: bool, read: set[str], codes: ir.DataType, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    feeds = {n: (size * rng.standard_normal((2, 5, K))).astype(np.float32) for n in "ab"}
    feeds["b"][:, 0] = -feeds["a"][:, 0]
    start = "x = Add (a, b) " if add else "x = Neg (a) "
    fused(model(start + body, "y", codes=codes, results=sorted(read)), feeds)
