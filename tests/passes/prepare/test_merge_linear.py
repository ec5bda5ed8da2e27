"""Linear layers of one input become one product: which do, and that the answers stay."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from qcompile.compiler.graph import nodes
from qcompile.compiler.provenance import sources
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Merging
from qcompile.passes.prepare.merge_linear import MergeLinear
from tests.passes.harness import NAMED, Arrays, assert_close, check_pass, context, model_of, outputs, run
from tests.passes.llama import WIDTH, llama
from tests.zoo import MODELS

TARGET = replace(target_named("cuda"), merging=Merging("", multiple=1, activations=frozenset({"Relu", "Gelu", "Silu"})))


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


WEIGHTS: Arrays = {
    "wq": normal(8, 8),
    "wk": normal(8, 4, seed=1),
    "wv": normal(8, 4, seed=2),
    "wt": normal(4, 8, seed=3),
    "bq": normal(8),
    "bv": normal(4, seed=1),
    "row": normal(1, 4),
    "one": np.array(0.5, np.float32),
    "grid": normal(3, 4),
    "true": np.array(True),
}
FEEDS = {"x": normal(2, 3, 8), "m": normal(3, 8), "on": np.array(True)}


def text(body: str, reads: str = "float[B,3,8] x", opset: int = 20) -> str:
    """A graph whose results are q, k and v, of the rank of what it reads."""
    dims = ["D{0}", "E{0}", "F{0}"] if reads.count(",") > 1 else ["D{0}", "E{0}"]
    results = ", ".join(f"float[{','.join(dims).format(name)}] {name}" for name in "qkv")
    return f'<ir_version: 10, opset_import: ["": {opset}]> g ({reads}) => ({results}) {{ {body} }}'


def merged(body: str, reads: str = "float[B,3,8] x", golden: str = "") -> ir.Model:
    feeds = {name: FEEDS[name] for name in re.findall(r"\] (\w+)", reads)}
    model = model_of(text(body, reads), WEIGHTS)
    return check_pass(MergeLinear(), model, feeds, golden=golden, before=NAMED, target=TARGET)


def kinds(model: ir.Model) -> list[str]:
    return [n.op_type for n in nodes(model)]


def stays(body: str, reads: str = "float[B,3,8] x") -> bool:
    model = model_of(text(body, reads), WEIGHTS)
    return not run(model, *NAMED, MergeLinear(), on=context(TARGET))[-1].modified


def test_golden_with_and_without_bias_and_other_widths() -> None:
    model = merged(
        "a = MatMul (x, wq) q = Add (bq, a) k = MatMul (x, wk) c = MatMul (x, wv) v = Add (c, bv)",
        golden="merge-linear",
    )
    assert kinds(model) == ["MatMul", "Add", "Split"]
    assert [v.name for v in model.graph.outputs] == ["q", "k", "v"]
    assert all(len(sources(n)) == 5 for n in model.graph), "every node stands for all that it came from"


def test_without_biases_there_is_no_add() -> None:
    assert kinds(merged("q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)")) == ["MatMul", "Split"]


def test_gemms_transposed_or_not_beside_a_matmul() -> None:
    body = "q = Gemm (m, wq, bq) k = Gemm <transB = 1> (m, wt, one) b = MatMul (m, wv) v = Add (b, row)"
    assert kinds(merged(body, "float[3,8] m")) == ["MatMul", "Add", "Split"]


def test_a_gemm_that_scales_or_adds_a_matrix_stays() -> None:
    body = "q = Gemm (m, wq) k = Gemm <alpha = 2.0> (m, wk) v = Gemm (m, wv, grid)"
    assert stays(body, "float[3,8] m")


def test_a_product_that_others_read_too_keeps_its_add_behind() -> None:
    model = merged("q = MatMul (x, wq) k = MatMul (x, wk) v = Add (k, bv)")
    assert kinds(model) == ["MatMul", "Split", "Add"]


def test_a_shared_weight_stays_shared() -> None:
    assert stays("q = MatMul (x, wq) k = MatMul (x, wk) n = Neg (x) v = MatMul (n, wk)")
    assert stays("q = MatMul (x, wk) k = MatMul (x, wk) v = Neg (x)")


def test_layers_of_different_inputs_stay() -> None:
    assert stays("n = Neg (x) q = MatMul (x, wq) k = MatMul (n, wk) v = Neg (x)")


def test_a_constant_that_is_no_weight() -> None:
    assert stays("c = Neg (x) t = Transpose <perm = [0, 2, 1]> (x) q = MatMul (t, x) k = MatMul (t, c) v = Neg (c)")


@pytest.mark.parametrize("tail", ["s = Sigmoid (a) k = Mul (a, s)", "k = Gelu (a)", "k = Relu (a)"])
def test_an_activation_of_the_linear_kernel_keeps_its_layer(tail: str) -> None:
    body = f"q = MatMul (x, wq) a = MatMul (x, wk) {tail} v = MatMul (x, wv)"
    model = merged(body)
    assert kinds(model).count("MatMul") == 2, "the gate stays by itself, the others merge"
    assert "Split" in kinds(model)


def test_an_activation_that_no_kernel_computes_does_not() -> None:
    body = "q = MatMul (x, wq) a = MatMul (x, wk) k = Tanh (a) v = MatMul (x, wv)"
    assert kinds(merged(body)).count("MatMul") == 1


def test_layers_whose_columns_do_not_align_stay() -> None:
    wide = replace(TARGET, merging=Merging("", multiple=8))
    model = model_of(text("q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)"), WEIGHTS)
    assert not run(model, *NAMED, MergeLinear(), on=context(wide))[-1].modified


@pytest.mark.parametrize("name", ["cpu", "tensorrt"])
def test_a_target_that_gains_nothing_leaves_the_graph(name: str) -> None:
    model = model_of(text("q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)"), WEIGHTS)
    assert not run(model, *NAMED, MergeLinear(), on=context(target_named(name)))[-1].modified


def test_layers_in_a_branch_read_from_outside() -> None:
    branch = "q_{0} = MatMul (x, {1}) k_{0} = MatMul (x, {2})"
    one, two = branch.format("a", "wk", "wv"), "q_b = MatMul (x, wv2) n = Neg (x) k_b = MatMul (n, wk2)"
    body = (
        f"q, k = If (on) <then_branch = one () => (float[B,3,4] q_a, float[B,3,4] k_a) {{ {one} }}, "
        f"else_branch = two () => (float[B,3,4] q_b, float[B,3,4] k_b) {{ {two} }}> v = MatMul (x, wq)"
    )
    weights = {**WEIGHTS, "wv2": WEIGHTS["wv"], "wk2": WEIGHTS["wk"]}
    model = model_of(text(body, "float[B,3,8] x, bool on"), weights)
    feeds = {"x": FEEDS["x"], "on": FEEDS["on"]}
    check_pass(MergeLinear(), model, feeds, before=NAMED, target=TARGET)
    branches = list(model.graph.subgraphs())
    assert sorted([n.op_type for n in g] for g in branches) == [["MatMul", "Neg", "MatMul"], ["MatMul", "Split"]]


def test_a_decoder_merges_what_its_kernels_do_not_activate() -> None:
    feeds = {"x": normal(2, 5, WIDTH)}
    model = check_pass(MergeLinear(), llama(layers=2), feeds, before=NAMED, target=target_named("cuda"))
    splits = [[v.shape[-1] for v in n.outputs if v.shape] for n in nodes(model) if n.op_type == "Split"]
    assert splits == [[32, 16, 16]] * 2, "keys and values are narrower; the gate keeps its SiLU, and up stays alone"
    bare = replace(TARGET, merging=Merging(""))
    model = check_pass(MergeLinear(), llama(layers=1), feeds, before=NAMED, target=bare)
    splits = [[v.shape[-1] for v in n.outputs if v.shape] for n in nodes(model) if n.op_type == "Split"]
    assert splits == [[32, 16, 16], [48, 48]], "where no kernel computes SiLU, gate and up merge"


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    biased=st.lists(st.sampled_from(["", "before", "after"]), min_size=5, max_size=5),
    depth=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_any_group_computes_the_same(widths: list[int], biased: list[str], depth: int, seed: int) -> None:
    weights, body = {}, ""
    for i, (width, bias) in enumerate(zip(widths, biased, strict=False)):
        weights[f"w{i}"] = normal(depth, width, seed=seed + i, dtype=np.float64)
        if not bias:
            body += f"y{i} = MatMul (x, w{i}) "
            continue
        weights[f"b{i}"] = normal(width, seed=seed + i, dtype=np.float64)
        body += f"p{i} = MatMul (x, w{i}) y{i} = Add ({f'b{i}, p{i}' if bias == 'before' else f'p{i}, b{i}'}) "
    results = ", ".join(f"double[B,{w}] y{i}" for i, w in enumerate(widths))
    written = f'<ir_version: 10, opset_import: ["": 20]> g (double[B,{depth}] x) => ({results}) {{ {body} }}'
    model, feeds = model_of(written, weights), {"x": normal(3, depth, seed=seed, dtype=np.float64)}
    expected = outputs(model, feeds)
    run(model, *NAMED, MergeLinear(), on=context(TARGET))
    assert kinds(model).count("MatMul") == 1
    assert_close(expected, outputs(model, feeds), 1e-6)


@pytest.mark.models
@pytest.mark.parametrize(("name", "layers"), [("all-minilm-l6-v2", 6)])
def test_real_encoders_merge_queries_keys_and_values(name: str, layers: int) -> None:
    zoo = MODELS[name]()
    model = ir.from_proto(onnx.load(zoo.path()))
    feeds = dict(zoo.calibration(1)[0])
    expected = outputs(model, feeds)
    run(model, *NAMED, MergeLinear(), on=context(target_named("cuda")))
    assert kinds(model).count("Split") == layers
    assert_close(expected, outputs(model, feeds), 1e-4)
