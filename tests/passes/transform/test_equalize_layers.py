from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.moments import Moments
from qcompile.passes.transform.equalize_layers import EqualizeLayers
from tests.passes.harness import NAMED, Arrays, assert_close, check_pass, context, model_of, outputs, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def uneven(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    """A weight whose rows differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    rows = 10.0 ** rng.uniform(-2, 2, (shape[0],) + (1,) * (len(shape) - 1))
    return (rng.standard_normal(shape) * rows).astype(np.float32)


def chain(channels: int = 4, seed: int = 0) -> tuple[ir.Model, Arrays]:
    """Conv -> Relu -> depthwise Conv -> Relu -> Conv, as in MobileNet."""
    text = f"""{HEAD} g (float[N,3,8,8] x) => (float[N,2,8,8] y) {{
      a = Conv (x, w1, b1) p = Relu (a) d = Conv <group = {channels}, pads = [1, 1, 1, 1]> (p, w2, b2) q = Relu (d)
      y = Conv (q, w3) }}"""
    weights = {
        "w1": uneven(seed, channels, 3, 1, 1),
        "b1": uneven(seed + 1, channels),
        "w2": uneven(seed + 2, channels, 1, 3, 3),
        "b2": uneven(seed + 3, channels),
        "w3": uneven(seed + 4, 2, channels, 1, 1),
    }
    return model_of(text, weights), {"x": np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)}


def magnitudes(model: ir.Model, name: str, axis: int) -> np.ndarray[Any, Any]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    array = np.abs(value.numpy())
    largest: np.ndarray[Any, Any] = array.max(axis=tuple(i for i in range(array.ndim) if i != axis))
    return largest


def test_a_chain_of_convolutions_is_balanced_and_keeps_its_function() -> None:
    model, feeds = chain()
    check_pass(EqualizeLayers(), model, feeds, golden="equalize-layers", before=NAMED)
    np.testing.assert_allclose(magnitudes(model, "w1", 0), magnitudes(model, "w2", 0), rtol=1e-3)
    np.testing.assert_allclose(magnitudes(model, "w2", 0), magnitudes(model, "w3", 1), rtol=1e-3)
    assert [v.name for v in model.graph.outputs] == ["y"]


def test_one_pair_gets_the_geometric_mean() -> None:
    first, second = uneven(1, 3, 5), uneven(2, 5, 2)
    model = model_of(
        f"{HEAD} g (float[N,3] x) => (float[N,2] y) "
        "{ a = MatMul (x, w1) h = Add (a, b) r = Relu (h) y = MatMul (r, w2) }",
        {"w1": first, "w2": second, "b": uneven(3, 5)},
    )
    check_pass(EqualizeLayers(), model, {"x": uneven(4, 6, 3)}, before=NAMED)
    expected = np.sqrt(np.abs(first).max(axis=0) * np.abs(second).max(axis=1))
    np.testing.assert_allclose(magnitudes(model, "w1", 1), expected, rtol=1e-5)
    np.testing.assert_allclose(magnitudes(model, "w2", 0), expected, rtol=1e-5)


def test_recorded_moments_are_scaled_with_their_values_which_get_new_names() -> None:
    model, feeds = chain()
    on = context()
    run(model, *NAMED, on=on)
    [before] = outputs(_tapped(model, "a"), feeds)[1:]
    on.moments["a"] = Moments(before.mean((0, 2, 3)), before.std((0, 2, 3)))
    run(model, *NAMED, EqualizeLayers(), on=on)
    assert list(on.moments) == ["a_equalized"]
    [after] = outputs(_tapped(model, "a_equalized"), feeds)[1:]
    np.testing.assert_allclose(on.moments["a_equalized"].mean, after.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    spread = on.moments["a_equalized"].deviation
    assert spread is not None
    np.testing.assert_allclose(spread, after.std((0, 2, 3)), rtol=1e-3)


def _tapped(model: ir.Model, name: str) -> ir.Model:
    copy = model.clone()
    copy.graph.outputs.append(next(v for n in copy.graph for v in n.outputs if v.name == name))
    return copy


@pytest.mark.parametrize("between", ["Clip (a, zero, six)", "Sigmoid (a)"])
def test_what_no_scale_passes_stays(between: str) -> None:
    model = model_of(
        f"{HEAD} g (float[N,3,4,4] x) => (float[N,2,4,4] y) {{ a = Conv (x, w1) r = {between} y = Conv (r, w2) }}",
        {"w1": uneven(1, 4, 3, 1, 1), "w2": uneven(2, 2, 4, 1, 1), "zero": np.float32(0), "six": np.float32(6)},
    )
    assert not run(model, *NAMED, EqualizeLayers())[-1].modified


def test_a_channel_that_nothing_reads_keeps_its_scale() -> None:
    second = uneven(2, 2, 4, 1, 1)
    second[:, 1] = 0
    model = model_of(
        f"{HEAD} g (float[N,3,4,4] x) => (float[N,2,4,4] y) {{ a = Conv (x, w1) r = Relu (a) y = Conv (r, w2) }}",
        {"w1": uneven(1, 4, 3, 1, 1), "w2": second},
    )
    dead = magnitudes(model, "w1", 0)[1]
    check_pass(EqualizeLayers(), model, {"x": uneven(5, 1, 3, 4, 4)}, before=NAMED)
    assert magnitudes(model, "w1", 0)[1] == dead


LAYERS = ["Relu", "", "Pool", "Depthwise", "Add"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4))
def test_random_chains_keep_their_function(seed: int, kinds: list[str]) -> None:
    rng = np.random.default_rng(seed)
    channels, value = 3, "x"
    layers, weights = [], {}
    for i, kind in enumerate([*kinds, ""]):
        wide = channels if kind in ("Depthwise", "Add") else int(rng.integers(2, 5))
        groups = channels if kind == "Depthwise" else 1
        weights[f"w{i}"] = uneven(int(rng.integers(10**6)), wide, channels // groups, 1, 1) / math.sqrt(channels)
        weights[f"b{i}"] = uneven(int(rng.integers(10**6)), wide)
        layers.append(f"c{i} = Conv <group = {groups}> ({value}, w{i}, b{i})")
        previous, value, channels = value, f"c{i}", wide
        if kind in ("Relu", "Depthwise"):
            layers.append(f"r{i} = Relu ({value})")
            value = f"r{i}"
        elif kind == "Pool":
            layers.append(f"p{i} = MaxPool <kernel_shape = [1, 1]> ({value})")
            value = f"p{i}"
        elif kind == "Add":
            layers.append(f"s{i} = Add ({value}, {previous})")
            value = f"s{i}"
    layers.append(f"y = Identity ({value})")
    model = model_of(f"{HEAD} g (float[1,3,3,3] x) => (float[1,{channels},3,3] y) {{ {' '.join(layers)} }}", weights)
    feeds = {"x": rng.standard_normal((1, 3, 3, 3)).astype(np.float32)}
    expected = outputs(model, feeds)
    run(model, *NAMED, EqualizeLayers())
    assert_close(expected, outputs(model, feeds))
