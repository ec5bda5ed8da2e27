"""Learned rounding against brute force, against rounding to nearest, and in whole models of 8 and 4 bits."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import INT8
from qcompile.compiler.layer_rows import LayerRows, every_row, in_layout, matrix
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.targets.table import Target
from qcompile.errors import DataError, QCompileError
from qcompile.passes.quantize.ada_round import AdaRound, best
from qcompile.passes.quantize.learned_rounding import RoundingProblem, learn, polish
from tests.compiler.walks import QUANTIZED, ready, whole
from tests.golden import assert_golden
from tests.passes.harness import model_of, outputs
from tests.passes.int8 import Array, head, normal
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, LINEAR, LINEAR_WEIGHTS, images, rows
from tests.sweep.harness import Samples, eager_target

FEW = AdaRound(iterations=60, samples=8)

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(
    inputs: Array, weight: Array, bits: int = 4, clip: tuple[float, float] = (-np.inf, np.inf)
) -> RoundingProblem:
    """A layer of one group that reads `inputs` [rows, K]; `weight` [N, K]."""
    high = 2 ** (bits - 1) - 1
    scale = np.broadcast_to(np.abs(weight).max(axis=1, keepdims=True) / high, weight.shape)[None].astype(np.float32)
    grid = weight[None] / scale
    return RoundingProblem(
        grid=grid,
        scale=scale,
        zero_point=np.zeros_like(scale),
        planned=np.rint(grid).astype(np.int32),
        pruned=grid == 0,
        lowest=-high,
        highest=high,
        bias=np.zeros((1, len(weight)), np.float32),
        clip=clip,
        inputs=inputs[None].astype(np.float32),
        outputs=(inputs @ weight.T)[None].astype(np.float32),
    )


def correlated(count: int, size: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((size, size)) * np.exp(-np.arange(size) / (size / 4))
    return np.maximum(random.standard_normal((count, size)) @ mixing.T + 0.2, 0).astype(np.float32)


@pytest.mark.parametrize("clip", [(-np.inf, np.inf), (0.0, np.inf)], ids=["linear", "relu"])
def test_brute_force_finds_little_better(clip: tuple[float, float]) -> None:
    """8 channels of 9 weights each, whose best of 512 roundings is known."""
    inputs = np.maximum(normal(400, 9) + 1.5 * normal(400, 1), 0)
    layer = problem(inputs, normal(8, 9) / 3, clip=clip)
    below = np.floor(layer.grid)
    options = np.array(list(itertools.product((0, 1), repeat=9)))
    least = np.min([layer.errors(np.clip(below + up, -7, 7)) for up in options], axis=0)
    found, nearest = layer.errors(best(layer, 400, 300, seed=0)), layer.errors(layer.planned)
    assert found.sum() <= 1.05 * least.sum()
    assert least.sum() < 0.5 * nearest.sum(), "rounding to nearest is far from it"


def test_white_inputs_leave_rounding_to_nearest() -> None:
    """With X^T X = I each weight is on its own, and the nearest code is the best."""
    layer = problem(np.linalg.qr(normal(64, 16))[0] * 8, normal(4, 16))
    codes = best(layer, 64, 100, seed=0)
    np.testing.assert_allclose(layer.errors(codes), layer.errors(layer.planned), rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_correlated_inputs_gain(bits: int) -> None:
    layer = problem(correlated(1024, 48), normal(16, 48) / 7, bits)
    learned = best(layer, 1024, 250, seed=1)
    assert np.abs(learned - layer.planned).max() == 1
    assert np.abs(learned).max() <= layer.highest
    assert layer.errors(learned).sum() < 0.4 * layer.errors(layer.planned).sum()
    np.testing.assert_array_equal(learned, best(layer, 1024, 250, seed=1))


def test_polishing_ends_where_no_single_change_helps() -> None:
    layer = problem(correlated(600, 12), normal(3, 12) / 3)
    codes = polish(layer, layer.planned)
    least = layer.errors(codes)
    assert least.sum() < layer.errors(layer.planned).sum()
    for i in range(12):
        other = codes.copy()
        other[:, :, i] = np.clip(2 * np.floor(layer.grid[:, :, i]) + 1 - codes[:, :, i], -7, 7)
        assert (layer.errors(other) >= least * (1 - 1e-4)).all()


def test_the_gradient_search_alone_gains() -> None:
    layer = problem(correlated(1024, 48), normal(16, 48) / 7)
    assert layer.errors(learn(layer, 250, seed=1)).sum() < 0.5 * layer.errors(layer.planned).sum()


def test_no_channel_is_worse_and_no_layer_on_other_rows() -> None:
    """Six rows for 48 weights: what is learned from them holds for nothing else."""
    layer = problem(correlated(600, 48), normal(16, 48) / 7)
    nearest, fit = layer.planned, best(layer, 400, 5, seed=0)
    first = replace(layer, inputs=layer.inputs[:, :400], outputs=layer.outputs[:, :400])
    assert (first.errors(fit) <= first.errors(nearest)).all()
    few = normal(6, 48, seed=9)
    other = normal(600, 48, seed=10)
    misleading = problem(np.concatenate([few, other]), normal(16, 48) / 7)
    np.testing.assert_array_equal(best(misleading, 6, 100, seed=0), misleading.planned)


CONVOLUTIONS = {
    "plain": "Conv (x, w)",
    "padded": "Conv <pads = [1, 0, 2, 1]> (x, w)",
    "strided": "Conv <strides = [2, 3], pads = [1, 1, 1, 1]> (x, w)",
    "dilated": "Conv <dilations = [2, 1]> (x, w)",
    "same upper": 'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)',
    "same lower": 'Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)',
    "grouped": "Conv <group = 2> (x, v)",
    "one axis": "Conv <pads = [1, 1]> (z, u)",
    "product": "MatMul (r, m)",
    "gemm": "Gemm <transB = 1> (r, t)",
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_layer_is_a_product_over_its_rows(kind: str) -> None:
    shapes = {"x": (2, 4, 7, 8), "z": (2, 4, 9), "r": (5, 6)}
    weights = {
        "w": normal(6, 4, 3, 2),
        "v": normal(6, 2, 3, 2),
        "u": normal(6, 4, 3),
        "m": normal(6, 3),
        "t": normal(3, 6),
    }
    read = CONVOLUTIONS[kind].split("(")[1][0]
    weight = CONVOLUTIONS[kind].rstrip(")")[-1]
    dims = ",".join(map(str, shapes[read]))
    result = ",".join("ABCD"[: len(shapes[read])])
    text = f"{head()} g (float[{dims}] {read}) => (float[{result}] y) {{ y = {CONVOLUTIONS[kind]} }}"
    model, x = model_of(text, {weight: weights[weight]}), normal(*shapes[read])
    [y] = outputs(model, {read: x})
    node = next(iter(model.graph))
    for most in (7, 10_000):
        layer = LayerRows(node, np.random.default_rng(0))
        layer.add(x, y, most)
        inputs, expected = layer.stacked()
        assert inputs.shape[1] == min(most, y.size // weights[weight].shape[1 if kind == "product" else 0])
        rearranged = matrix(node, weights[weight])
        np.testing.assert_allclose(inputs @ rearranged.swapaxes(1, 2), expected, atol=1e-5)
        if most > inputs.shape[1]:
            np.testing.assert_array_equal(every_row(node, x), inputs)
        np.testing.assert_array_equal(in_layout(node, rearranged, weights[weight]), weights[weight])


def narrow(bits: int) -> Target:
    """A CPU whose weights have so many bits, in int8 codes."""
    target = eager_target()
    fmt = replace(INT8, low=-(2 ** (bits - 1)), high=2 ** (bits - 1) - 1)
    return replace(target, formats=(replace(target.formats[0], weight=fmt),))


def rounded(
    text: str, weights: dict[str, Array], feeds: Sequence[Sample], bits: int = 8, checkpoint: Path | None = None
) -> tuple[ir.Model, CompileContext, QuantPlan]:
    """The model, its context with the learned codes, and the plan before them."""
    model, context = ready(model_of(text, dict(weights)), feeds, QUANTIZED, narrow(bits))
    before = replace(context.plan, weights=dict(context.plan.weights))
    context.checkpoint, context.resume = checkpoint, checkpoint is not None and checkpoint.exists()
    FEW.run(model, context)
    return model, context, before


CASES: dict[str, Any] = {  # the rows are all but white, which leaves little to gain
    "images": (IMAGES, IMAGE_WEIGHTS, images, 0.6),
    "rows": (LINEAR, LINEAR_WEIGHTS, rows, 0.85),
}


@pytest.mark.parametrize("case", CASES)
def test_four_bits_gain_in_whole_models(case: str) -> None:
    text, weights, make, gain = CASES[case]
    every = make(24)
    model, context, before = rounded(text, weights, every[:8], bits=4)
    fresh = every[8:]
    exact = whole(model, fresh)

    def noise(plan: QuantPlan) -> float:
        given = whole(lowered_copy(model, context, plan), fresh)
        return float(np.mean([np.square(g["y"] - e["y"]).mean() for g, e in zip(given, exact, strict=True)]))

    assert noise(context.plan) < gain * noise(before)
    for key, planned in before.weights.items():
        found = context.plan.weights[key]
        assert found.params is planned.params
        assert found.codes.dtype == planned.codes.dtype
        assert np.abs(found.codes.astype(int) - planned.codes).max() <= 1
        assert np.abs(found.codes).max() <= 7


def test_the_same_seed_gives_the_same_codes() -> None:
    first, second = (rounded(LINEAR, LINEAR_WEIGHTS, rows(8))[1].plan.weights for _ in range(2))
    for key in first:
        np.testing.assert_array_equal(first[key].codes, second[key].codes)


def test_golden() -> None:
    """Whose codes are learned, on which grid. Which of them move is a matter of the machine's last digits."""
    _, context, before = rounded(IMAGES, IMAGE_WEIGHTS, images(8), bits=4)
    learned = context.plan.weights
    grids = [f"{unit} {weight}: {q.params.spec}\n" for (weight, unit), q in before.weights.items()]
    touched = [f"{unit} {w}: learned\n" for (w, unit), q in learned.items() if q is not before.weights[w, unit]]
    assert_golden("passes/ada-round", f"# before\n{''.join(grids)}\n# after\n{''.join(touched)}")
    assert any((q.codes != before.weights[key].codes).any() for key, q in learned.items())


def test_without_samples_there_is_an_error() -> None:
    model, context = ready(model_of(LINEAR, dict(LINEAR_WEIGHTS)), rows(), QUANTIZED)
    context.calibration = Samples([])
    with pytest.raises(DataError, match="no calibration samples"):
        FEW.run(model, context)


def test_without_torch_there_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return plain(name, *rest)

    model, context = ready(model_of(LINEAR, dict(LINEAR_WEIGHTS)), rows(), QUANTIZED)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(QCompileError, match="ada-round needs torch"):
        FEW.run(model, context)
