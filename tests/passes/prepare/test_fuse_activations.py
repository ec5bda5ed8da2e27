from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.prepare.fuse_activations import FuseActivations
from tests.passes.harness import NAMED, check_pass, model_of, run

WEIGHTS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "three": np.float32(3),
    "six": np.float32([6]),
    "sixth": np.float32(1 / 6),
    "half": np.float32(0.5),
    "root": np.float32(np.sqrt(2)),
    "inverse": np.float32(np.sqrt(0.5)),
    "seven": np.float32(7),
    "deep": np.full((1, 1, 1), 3, np.float32),
}
FEEDS = {"x": np.linspace(-8, 8, 24, dtype=np.float32).reshape(2, 12)}
RELU6 = "a = Add (x, three) r = Clip (a, zero, six)"


def written(body: str, opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["": {opset}]> g (float[2,12] x) => (float[2,12] y) {{ {body} }}'


def kinds(body: str, opset: int = 17, golden: str = "") -> list[str]:
    model = model_of(written(body, opset), WEIGHTS)
    check_pass(FuseActivations(), model, FEEDS, golden=golden, before=NAMED)
    assert [v.name for v in model.graph.outputs] == ["y"]
    return [n.op_type for n in model.graph]


@pytest.mark.parametrize(
    "body",
    [
        f"{RELU6} m = Mul (x, r) y = Div (m, six)",
        f"{RELU6} d = Div (r, six) y = Mul (d, x)",
        f"{RELU6} d = Mul (x, sixth) y = Mul (d, r)",
        "a = Add (three, x) r = Clip (a, zero, six) m = Mul (sixth, r) y = Mul (x, m)",
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (h, x)",
    ],
)
def test_hard_swish_in_any_order(body: str) -> None:
    assert kinds(body) == ["HardSwish"]


def test_golden() -> None:
    body = f"{RELU6} m = Mul (x, r) s = Div (m, six) b = Add (s, three) q = Clip (b, zero, six) y = Mul (q, sixth)"
    assert kinds(body, golden="fuse-activations") == ["HardSwish", "HardSigmoid"]


def test_hard_sigmoid() -> None:
    assert kinds(f"{RELU6} y = Div (r, six)") == ["HardSigmoid"]


@pytest.mark.parametrize(
    "body",
    [
        "d = Div (x, root) e = Erf (d) p = Add (e, one) m = Mul (x, p) y = Mul (m, half)",
        "d = Mul (x, inverse) e = Erf (d) p = Add (one, e) m = Mul (half, x) y = Mul (m, p)",
    ],
)
def test_gelu_where_the_opset_has_it(body: str) -> None:
    assert kinds(body, 20) == ["Gelu"]
    assert not run(model_of(written(body, 17), WEIGHTS), *NAMED, FuseActivations())[-1].modified


@pytest.mark.parametrize(
    "body",
    [
        f"{RELU6} y = Div (r, seven)",
        f"{RELU6} y = Div (six, r)",
        f"{RELU6} n = Neg (x) m = Mul (n, r) y = Div (m, seven)",
        "a = Add (x, three) r = Clip (a, zero, seven) m = Mul (x, r) y = Div (m, six)",
        "s = Sigmoid (x) y = Mul (x, s)",
        "h = HardSigmoid (x) y = Mul (h, x)",
    ],
)
def test_other_products_stay(body: str) -> None:
    assert not run(model_of(written(body), WEIGHTS), *NAMED, FuseActivations())[-1].modified


def test_an_intermediate_that_is_read_elsewhere_stays() -> None:
    body = f"{RELU6} m = Mul (x, r) d = Div (m, six) y = Add (d, m)"
    assert not run(model_of(written(body), WEIGHTS), *NAMED, FuseActivations())[-1].modified


def test_a_constant_that_adds_a_dimension_is_no_coefficient() -> None:
    text = written("a = Add (x, deep) r = Clip (a, zero, six) y = Div (r, six)").replace(
        "=> (float[2,12]", "=> (float[1,2,12]"
    )
    assert not run(model_of(text, WEIGHTS), *NAMED, FuseActivations())[-1].modified
