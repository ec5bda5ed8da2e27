"""Where a graph is cut, and that the pieces are all of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from qcompile.compiler.blocks import cut, extract
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.targets import target_named
from qcompile.compiler.units import candidates
from tests.compiler.test_block_walker import assert_same, walked
from tests.compiler.walks import QUANTIZED, ready, whole
from tests.passes.harness import model_of
from tests.passes.int8 import Array, head, normal
from tests.sweep.harness import PREPARE
from tests.sweep.random_graphs import graphs, samples
from tests.zoo import MODELS

CPU = target_named("cpu")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(proto=graphs())
def test_every_node_is_in_one_block_and_no_unit_in_two(proto: onnx.ModelProto) -> None:
    model, context = ready(proto, samples(proto), PREPARE)
    blocks = cut(model, context.target)
    assert [name for block in blocks for name in block.nodes] == [n.name for n in model.graph]
    place = {name: i for i, block in enumerate(blocks) for name in block.nodes}
    for candidate in candidates(model.graph, context.target):
        assert len({place[str(n.name)] for n in candidate.nodes}) == 1
    known = {str(v.name) for v in model.graph.inputs}
    for block in blocks:
        assert known.issuperset(block.inputs)
        known |= set(block.outputs)
    assert known.issuperset(str(v.name) for v in model.graph.outputs if v.producer() is not None)


def decoder(layers: int) -> tuple[str, dict[str, Array]]:
    """Layers of a decoder with a cache, a mask and positions that all of them read, and a head."""
    body = "m = Unsqueeze (mask, one)  a = Not (m)  n = Cast <to = 1> (a)  bias = Mul (n, far)  c = Cos (positions)\n"
    for i in range(layers):
        x = "x" if i == 0 else f"x{i - 1}"
        body += f"""l{i} = LayerNormalization ({x}, g)  q{i} = MatMul (l{i}, wq{i})  k{i} = MatMul (l{i}, wk{i})
        e{i} = Mul (q{i}, c)  present{i} = Concat <axis = 1> (past{i}, k{i})
        t{i} = Transpose <perm = [0, 2, 1]> (present{i})  s{i} = MatMul (e{i}, t{i})  b{i} = Add (s{i}, bias)
        p{i} = Softmax (b{i})  o{i} = MatMul (p{i}, present{i})  h{i} = MatMul (o{i}, wo{i})  r{i} = Add (h{i}, {x})
        u{i} = LayerNormalization (r{i}, g)  f{i} = MatMul (u{i}, wf{i})  z{i} = Relu (f{i})
        d{i} = MatMul (z{i}, wd{i})  x{i} = Add (d{i}, r{i})\n"""
    body += f"y = MatMul (x{layers - 1}, wy)"
    inputs = ", ".join(f"float[1,3,8] past{i}" for i in range(layers))
    outputs = ", ".join(f"float[1,5,8] present{i}" for i in range(layers))
    text = (
        f"{head()} g (float[1,2,8] x, bool[1,5] mask, float[1,2,8] positions, {inputs})"
        f" => (float[1,2,12] y, {outputs}) {{ {body} }}"
    )
    weights: dict[str, Array] = {"g": np.ones(8, np.float32), "far": np.float32(-30), "one": np.int64([1])}
    weights["wy"] = normal(8, 12)
    for i in range(layers):
        weights |= {f"w{kind}{i}": normal(8, 8, seed=i) / 3 for kind in "qko"}
        weights |= {f"wf{i}": normal(8, 16, seed=i) / 3, f"wd{i}": normal(16, 8, seed=i) / 4}
    return text, weights


def feed(layers: int, seed: int = 0) -> dict[str, Array]:
    values = {"x": normal(1, 2, 8, seed=seed), "positions": normal(1, 2, 8, seed=seed + 1)}
    return (
        values
        | {"mask": np.array([[False, True, True, True, True]])}
        | {f"past{i}": normal(1, 3, 8, seed=seed + i) for i in range(layers)}
    )


def test_a_block_is_a_layer_and_what_all_layers_read_hinders_no_cut() -> None:
    text, weights = decoder(4)
    model, context = ready(model_of(text, weights), [feed(4)], PREPARE)
    blocks = cut(model, context.target)
    assert [set(b.outputs) for b in blocks[1:]] == [
        {"present1", "x1"},
        {"present2", "x2"},
        {"present3", "x3"},
        {"y"},
    ]
    assert [set(b.inputs) for b in blocks[1:3]] == [{"x0", "past1", "bias", "c"}, {"x1", "past2", "bias", "c"}]


def test_a_decoder_walks_like_the_whole_model() -> None:
    text, weights = decoder(3)
    feeds = [feed(3, seed) for seed in range(3)]
    model, context = ready(model_of(text, weights), feeds, QUANTIZED)
    exact, low = walked(model, context, feeds)
    assert_same(exact, whole(model, feeds), 1e-6)
    assert_same(low, whole(lowered_copy(model, context), feeds), 1e-6)


def test_a_part_shares_its_tensors_with_the_model() -> None:
    text, weights = decoder(2)
    model, context = ready(model_of(text, weights), [feed(2)], PREPARE)
    block = cut(model, context.target)[1]
    part = extract(model, block.inputs, block.outputs)
    assert part.graph.opset_imports == model.graph.opset_imports
    for name, value in part.graph.initializers.items():
        assert value.const_value is model.graph.initializers[name].const_value


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "least"),
    [("all-minilm-l6-v2", 6), ("efficientnet-lite0", 16), ("ppocrv4-rec", 12), ("silero-vad-step", 1)],
)
def test_models_walk_like_the_whole(name: str, least: int) -> None:
    zoo = MODELS[name]()
    feeds = zoo.calibration(2)
    model, context = ready(ir.load(zoo.path()), feeds, QUANTIZED, CPU)
    assert len(cut(model, CPU)) >= least
    exact, low = walked(model, context, feeds)
    assert_same(exact, whole(model, feeds), 2e-6)
    assert_same(low, whole(lowered_copy(model, context), feeds), 1e-5)
