from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.provenance import sources
from qcompile.passes.prepare.fold_batch_norm import FoldBatchNorm
from tests.passes.harness import NAMED, Arrays, assert_close, check_pass, model_of, outputs, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


def norm(channels: int, at: str = "") -> Arrays:
    """Constants of a BatchNormalization: gamma, beta, mean, variance."""
    values = normal(channels), normal(channels), normal(channels), np.abs(normal(channels)) + np.float32(0.1)
    return dict(zip((f"g{at}", f"o{at}", f"m{at}", f"v{at}"), values, strict=True))


def test_batch_norm_scale_and_shift_go_into_the_convolution() -> None:
    model = model_of(
        f"""{HEAD} g (float[N,3,6,6] x) => (float[N,4,6,6] y) {{
          c = Conv <pads = [1, 1, 1, 1]> (x, w)
          n = BatchNormalization (c, g, o, m, v)
          s = Mul (n, scale)
          t = Add (shift, s)
          y = Relu (t)
        }}""",
        {"w": normal(4, 3, 3, 3), "scale": normal(1, 4, 1, 1), "shift": normal(4, 1, 1)} | norm(4),
    )
    check_pass(FoldBatchNorm(), model, {"x": normal(2, 3, 6, 6)}, golden="fold-batch-norm", before=NAMED)
    conv, _ = model.graph
    assert conv.outputs[0].name == "t", "the value keeps the name of what it holds now"
    assert sources(conv) == ["Conv_0", "BatchNormalization_1", "Mul_2", "Add_3"]


@pytest.mark.parametrize(
    "layers",
    [
        "c = ConvTranspose <group = 2> (x, w, b) y = BatchNormalization (c, g, o, m, v)",
        "c = Conv <group = 2> (x, k, b) d = Sub (c, half) y = Div (d, per)",
        "c = Conv <group = 2> (x, k) y = Sub (half, c)",
        "c = Conv <group = 2> (x, k) d = Add (c, per) e = Add (d, per) y = Mul (half, e)",
    ],
)
def test_every_layer_and_form(layers: str) -> None:
    weights = {
        "w": normal(4, 3, 2, 2),
        "k": normal(6, 2, 2, 2),
        "b": normal(6),
        "half": np.float32(0.5),
        "per": normal(6, 1, 1),
    } | norm(6)
    model = model_of(f"{HEAD} g (float[1,4,5,5] x) => (float[1,6,H,W] y) {{ {layers} }}", weights)
    check_pass(FoldBatchNorm(), model, {"x": normal(1, 4, 5, 5)}, before=NAMED)
    assert len(list(model.graph)) == 1
    assert [v.name for v in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("gemm", ["alpha = 0.5, beta = 2.0", "transB = 1, beta = 0.25"])
@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,)])
def test_gemm_with_alpha_beta_and_any_bias(gemm: str, bias: tuple[int, ...]) -> None:
    weight = normal(5, 3) if "transB" in gemm else normal(3, 5)
    text = f"{HEAD} g (float[N,3] x) => (float[N,5] y) {{ c = Gemm <{gemm}> (x, w, b) d = Mul (c, s) y = Add (d, t) }}"
    model = model_of(text, {"w": weight, "b": normal(*bias), "s": normal(5), "t": normal(1, 5)})
    check_pass(FoldBatchNorm(), model, {"x": normal(4, 3)}, before=NAMED)
    assert len(list(model.graph)) == 1


def test_shared_weights_are_untied() -> None:
    model = model_of(
        f"""{HEAD} g (float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z) {{
          y = Conv (x, w) c = Conv (x, w) z = Mul (c, s) }}""",
        {"w": normal(2, 2, 1, 1), "s": normal(2, 1, 1)},
    )
    check_pass(FoldBatchNorm(), model, {"x": normal(1, 2, 4, 4)}, before=NAMED)
    first, second = model.graph
    assert first.inputs[1] is not second.inputs[1]


@pytest.mark.parametrize(
    "layers",
    [
        "c = Conv (x, w) y = Add (c, image)",
        "c = Conv (x, w) d = Mul (c, s) e = Relu (c) y = Add (d, e)",
        "c = Conv (x, w) y = Div (s, c)",
        "c = Conv (x, w) y = Mul (c, c)",
        "c = Conv (x, w) y = Mul (c, deep)",
        "c = Relu (x) y = Mul (c, s)",
    ],
)
def test_what_cannot_be_folded_stays(layers: str) -> None:
    kind = "float[1,1,2,4,4]" if "deep" in layers else "float[1,2,4,4]"
    weights = {"w": normal(2, 2, 1, 1), "s": normal(2, 1, 1), "image": normal(4, 4), "deep": normal(1, 1, 2, 1, 1)}
    model = model_of(f"{HEAD} g (float[1,2,4,4] x) => ({kind} y) {{ {layers} }}", weights)
    assert not run(model, *NAMED, FoldBatchNorm())[-1].modified


def test_batch_norm_after_anything_else_is_spelled_out() -> None:
    model = model_of(
        f"{HEAD} g (float[1,3,4,4] x) => (float[1,3,4,4] y) {{ r = Relu (x) y = BatchNormalization (r, g, o, m, v) }}",
        norm(3),
    )
    check_pass(FoldBatchNorm(), model, {"x": normal(1, 3, 4, 4)}, golden="fold-batch-norm-alone", before=NAMED)
    assert [n.op_type for n in model.graph] == ["Relu", "Mul", "Add"]


@pytest.mark.parametrize("taken", [True, False])
def test_bodies_fold_too_and_leave_outer_weights_alone(taken: bool) -> None:
    model = model_of(
        f"""{HEAD} g (float[1,2,4,4] x, bool c) => (float[1,2,4,4] y) {{
          y = If (c) <
            then_branch = a () => (float[1,2,4,4] p) {{ k = Conv (x, w) p = Mul (k, s) }},
            else_branch = b () => (float[1,2,4,4] q) {{ q = Conv (x, w) }}
          > }}""",
        {"w": normal(2, 2, 1, 1), "s": normal(2, 1, 1)},
    )
    check_pass(FoldBatchNorm(), model, {"x": normal(1, 2, 4, 4), "c": np.array(taken)}, before=NAMED)


def test_a_layer_outside_the_body_is_not_folded_into() -> None:
    model = model_of(
        f"""{HEAD} g (float[1,2,4,4] x, bool c) => (float[1,2,4,4] y) {{
          k = Conv (x, w)
          y = If (c) <
            then_branch = a () => (float[1,2,4,4] p) {{ p = Mul (k, s) }},
            else_branch = b () => (float[1,2,4,4] q) {{ q = Relu (x) }}
          > }}""",
        {"w": normal(2, 2, 1, 1), "s": normal(2, 1, 1)},
    )
    feeds = {"x": normal(1, 2, 4, 4), "c": np.array(True)}
    expected = outputs(model, feeds)
    assert not run(model, *NAMED, FoldBatchNorm())[-1].modified
    assert_close(expected, outputs(model, feeds))
