"""Channels of different layers are compared by what later blocks read."""

from __future__ import annotations

import numpy as np

from qcompile.compiler.layer_grams import LayerInputs
from qcompile.compiler.linear_layers import linear_layers
from qcompile.passes.transform.prune_channels import PruneChannels
from qcompile.passes.transform.pruning.block_loss import block_losses
from tests.passes.harness import NAMED, context, model_of, run
from tests.passes.samples import Samples

TEXT = """
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 8] x) => (float[N, 8] y) {
  a = MatMul (x, w1)
  h = Relu (a)
  f = MatMul (h, w2)
  s = Mul (x, stream)
  y = Add (s, f)
}
"""


def losses(stream: float) -> list[np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((8, 6)), "w2": rng.standard_normal((6, 8)), "stream": np.array(stream)}
    model, on = model_of(TEXT, {n: w.astype(np.float32) for n, w in weights.items()}), context()
    on.calibration = Samples(rng.standard_normal((400, 8)).astype(np.float32))
    run(model, *NAMED, on=on)
    reader = linear_layers(model)[0][1]
    inputs = LayerInputs.of("test", None, model, on)
    columns = {reader.name: [np.array([0, 0, 1, 1, 2, -1]), np.array([-1, -1, -1, -1, -1, 0])]}
    return block_losses([reader], columns, model, inputs, by=PruneChannels())[reader.name]


def test_what_drowns_in_a_residual_stream_is_worth_less() -> None:
    alone, beside, under = (losses(stream) for stream in (0.0, 1.0, 10.0))
    assert [own.size for own in alone] == [3, 1]
    for a, b, c in zip(alone, beside, under, strict=True):
        assert (a > b).all()
        assert (b > 5 * c).all()
        assert np.allclose(a / a[0], c / c[0])
