from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.prepare.fold_affine_forward import FoldAffineForward
from tests.passes.harness import NAMED, check_pass, model_of, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RANDOM.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(6, 4, 3, 3),
    "grouped": normal(6, 2, 3, 3),
    "b": normal(6),
    "half": np.float32(0.5),
    "per": normal(4, 1, 1),
    "zero": np.float32([[[1]], [[0]], [[2]], [[3]]]),
    "g": normal(4),
    "o": normal(4),
    "m": normal(4),
    "v": np.abs(normal(4)) + np.float32(0.1),
}
FEEDS = {"x": normal(1, 4, 5, 5)}


def convolved(layers: str) -> str:
    return f"{HEAD} g (float[1,4,5,5] x) => (float[1,6,H,W] y) {{ r = HardSwish (x) {layers} }}"


def test_golden() -> None:
    text = convolved("s = Mul (r, half) t = Add (s, per) y = Conv <pads = [1, 1, 1, 1]> (t, w, b)")
    model = check_pass(FoldAffineForward(), model_of(text, WEIGHTS), FEEDS, golden="fold-affine-forward", before=NAMED)
    assert [n.op_type for n in model.graph] == ["HardSwish", "Add", "Conv"], "zeros at the border are not shifted"


@pytest.mark.parametrize(
    "layers",
    [
        "s = Mul (r, half) t = Add (s, per) y = Conv (t, w, b)",
        "s = Mul (per, r) y = Conv <pads = [1, 1, 1, 1]> (s, w)",
        "s = Div (r, per) t = Sub (per, s) y = Conv <group = 2> (t, grouped, b)",
        "s = Mul (r, per) y = Conv <group = 2, pads = [1, 0, 1, 0]> (s, grouped)",
        "s = BatchNormalization (r, g, o, m, v) y = Conv (s, w)",
    ],
)
def test_scales_and_shifts_go(layers: str) -> None:
    model = model_of(convolved(layers), WEIGHTS)
    check_pass(FoldAffineForward(), model, FEEDS, before=NAMED)
    assert [n.op_type for n in model.graph] == ["HardSwish", "Conv"]


@pytest.mark.parametrize(
    "layers",
    [
        "t = Add (r, per) y = Conv <pads = [1, 1, 1, 1]> (t, w)",
        'y0 = Add (r, per) y = Conv <auto_pad = "SAME_UPPER"> (y0, w)',
        "s = Mul (r, zero) y = Conv (s, w)",
        "s = Mul (r, per) k = Conv (s, w) q = Conv (s, w) y = Add (k, q)",
        "s = Mul (r, r) y = Conv (s, w)",
    ],
)
def test_the_rest_stays(layers: str) -> None:
    assert not run(model_of(convolved(layers), WEIGHTS), *NAMED, FoldAffineForward())[-1].modified


def test_a_shared_weight_is_untied() -> None:
    text = f"""{HEAD} g (float[1,4,5,5] x) => (float[1,6,3,3] y, float[1,6,3,3] z) {{
      s = Mul (x, per) y = Conv (s, w) z = Conv (x, w) }}"""
    check_pass(FoldAffineForward(), model_of(text, WEIGHTS), FEEDS, before=NAMED)
