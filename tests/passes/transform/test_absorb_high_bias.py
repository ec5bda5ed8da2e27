from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompile.compiler.moments import Moments
from qcompile.compiler.printer import print_model
from qcompile.passes.prepare.fold_batch_norm import FoldBatchNorm
from qcompile.passes.transform.absorb_high_bias import AbsorbHighBias
from qcompile.passes.transform.relax_clip import RelaxClip
from tests.golden import assert_golden
from tests.passes.harness import NAMED, Arrays, context, model_of, outputs, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(**more: np.ndarray[Any, Any]) -> Arrays:
    """A 1x1 convolution of orthogonal rows behind which BatchNormalization knows means 8, 0.5 and -4."""
    return {
        "w1": np.linalg.qr(normal(1, 3, 3))[0].astype(np.float32).reshape(3, 3, 1, 1),
        "g": np.array([1.0, 2.0, 0.5], np.float32),
        "o": np.array([8.0, 0.5, -4.0], np.float32),
        "m": np.zeros(3, np.float32),
        "v": np.ones(3, np.float32),
        **more,
    }


LAYERS = {
    "y = Conv (r, w2, b2)": {"w2": normal(2, 4, 3, 2, 2), "b2": normal(3, 4)},
    "y = Conv <group = 3> (r, w2)": {"w2": normal(4, 6, 1, 1, 1)},
    "p = GlobalMaxPool (r) y = Conv (p, w2)": {"w2": normal(2, 4, 3, 1, 1)},
}


def compiled(layer: str, more: Arrays, activation: str = "Relu (n)") -> tuple[Any, Any, Any]:
    text = (
        f"{HEAD} g (float[N,3,6,6] x) => (float[N,C,H,W] y) {{ c = Conv (x, w1) "
        f"n = BatchNormalization (c, g, o, m, v) r = {activation} {layer} }}"
    )
    model, on = model_of(text, weights(**more)), context()
    run(model, *NAMED, FoldBatchNorm(), on=on)
    before = model.clone()
    return before, model, on


@pytest.mark.parametrize("layer", list(LAYERS)[:2])
def test_a_high_bias_moves_behind_the_relu(layer: str) -> None:
    before, model, on = compiled(layer, LAYERS[layer])
    assert run(model, *NAMED, AbsorbHighBias(), on=on)[-1].modified
    image = normal(5, 64, 3, 6, 6)
    [expected], [got] = (outputs(m, {"x": image}) for m in (before, model))
    assert np.abs(expected - got).mean() < 1e-3 * np.abs(expected).mean(), "but for values beyond 3 deviations"
    inside = {"x": np.clip(image, -1, 1)}
    [expected], [got] = (outputs(m, inside) for m in (before, model))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    [moments] = on.moments.values()
    np.testing.assert_allclose(moments.mean, [3.0, 0.5, -4.0], rtol=1e-4)
    assert any("of 1 channels" in n for n in on.notices)


def test_golden() -> None:
    before, model, on = compiled("y = Conv (r, w2, b2)", LAYERS["y = Conv (r, w2, b2)"])
    run(model, *NAMED, AbsorbHighBias(), on=on)
    after = print_model(model, provenance=True)
    assert_golden("passes/absorb-high-bias", f"# before\n{print_model(before)}\n# after\n{after}")


@pytest.mark.parametrize(
    ("layer", "more", "activation"),
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (r, w2)", {"w2": normal(2, 4, 3, 3, 3)}, "Relu (n)"),
        (*list(LAYERS.items())[2], "Relu (n)"),
        ("y = Conv (r, w2)", {"w2": normal(2, 4, 3, 1, 1), "z": np.float32(0), "b": np.float32(6)}, "Clip (n, z, b)"),
    ],
)
def test_borders_other_readers_and_upper_bounds_keep_it(layer: str, more: Arrays, activation: str) -> None:
    _, model, on = compiled(layer, more, activation)
    assert not run(model, *NAMED, AbsorbHighBias(), on=on)[-1].modified


def clipped(high: float) -> tuple[Any, Any, Any]:
    more = {"w2": normal(2, 4, 3, 1, 1), "z": np.float32(0), "b": np.float32(high)}
    return compiled("y = Conv (r, w2)", more, "Clip (n, z, b)")


def test_a_clip_whose_bound_is_out_of_reach_becomes_a_relu() -> None:
    before, model, on = clipped(12.5)
    assert run(model, *NAMED, RelaxClip(), on=on)[-1].modified
    assert [n.op_type for n in model.graph] == ["Conv", "Relu", "Conv"]
    assert_golden(
        "passes/relax-clip", f"# before\n{print_model(before)}\n# after\n{print_model(model, provenance=True)}"
    )
    image = {"x": np.clip(normal(5, 64, 3, 6, 6), -2, 2)}
    np.testing.assert_allclose(outputs(model, image)[0], outputs(before, image)[0], rtol=1e-5, atol=1e-5)
    assert any("1 of 1 Clips became Relu" in n and "no sample" in n for n in on.notices)


def test_a_clip_that_clips_stays() -> None:
    _, model, on = clipped(6.0)
    assert not run(model, *NAMED, RelaxClip(), on=on)[-1].modified
    assert run(model, *NAMED, RelaxClip(deviations=0), on=on)[-1].modified is False, "the mean itself is above"


def test_nothing_is_relaxed_without_moments() -> None:
    _, model, on = clipped(100.0)
    on.moments = {"other": Moments(np.zeros(3), np.ones(3))}
    assert not run(model, *NAMED, RelaxClip(), on=on)[-1].modified
