"""LinearW8A8: the body as ONNX Runtime inlines it."""

from __future__ import annotations

import numpy as np

from qcompile.compiler.operators import linear_w8a8
from tests.operators.running import model_of, run, session


def test_a_product_by_hand() -> None:
    constants = {
        "w": np.array([[1, 2], [3, -4], [0, 127]], np.int8),
        "w_scale": np.array([1, 0.5, 2], np.float32),
        "bias": np.array([0, 0, -1], np.float32),
    }
    model = model_of(
        linear_w8a8(bias=True, activation="Relu"), {"x_q": ["M", 2], "x_scale": ["M", 1]}, constants=constants
    )
    feeds = {"x_q": np.array([[1, 1], [-2, 3]], np.int8), "x_scale": np.array([[1], [0.5]], np.float32)}
    np.testing.assert_array_equal(run(session(model), feeds)["y"], [[3, 0, 253], [2, 0, 380]])
