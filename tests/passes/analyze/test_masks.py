"""Padding masks: positions that do not count leave no trace in any statistic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.histogram import HISTOGRAM, histogram_of
from qcompile.compiler.passes import StatisticRequest
from qcompile.compiler.statistics import RANGE, Channels, StatisticsTable
from qcompile.errors import DataError
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.prepare.infer_shapes import infer_shapes
from tests.passes.harness import model_of
from tests.sweep.harness import Samples, eager_target

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
ATTENTION = (
    HEAD
    + """g (float[batch,length,6] x, int64[batch,length] attention_mask) => (float[batch,6] y) {
  r = Reshape (x, heads)
  q = Transpose <perm = [0, 2, 1, 3]> (r)
  k = Transpose <perm = [0, 2, 3, 1]> (r)
  scores = MatMul (q, k)
  backwards = Transpose <perm = [2, 1, 0]> (x)
  rows = Identity (x)
  y = ReduceMean <axes = [1], keepdims = 0> (rows)
}"""
)
RANDOM = np.random.default_rng(0)
Array = npt.NDArray[Any]


def attention() -> ir.Model:
    model = model_of(ATTENTION, {"heads": np.array([0, 0, 2, 3])})
    infer_shapes(model)
    return model


def batch(lengths: list[int]) -> Sample:
    """Rows of different lengths, with giants where they are padded."""
    longest = max(lengths)
    mask = np.array([[i < n for i in range(longest)] for n in lengths])
    x = RANDOM.standard_normal((len(lengths), longest, 6)).astype(np.float32)
    x[~mask] = 1000 * x[~mask] + 5000
    return {"x": x, "attention_mask": mask.astype(np.int64)}


SAMPLES = [batch([3, 5, 1]), batch([4]), batch([2, 2])]


def run(
    samples: list[Sample], mask: str | None = "attention_mask", model: ir.Model | None = None
) -> tuple[StatisticsTable, CompileContext]:
    from pathlib import Path

    context = CompileContext(eager_target(), Path("unused"), Samples(samples))
    names = ("x", "r", "q", "scores", "backwards", "y")
    context.requests = [StatisticRequest(n, RANGE) for n in names]
    context.requests += [StatisticRequest(n, Channels(a)) for n, a in (("x", -1), ("q", 3), ("r", 2), ("backwards", 0))]
    Calibrate(method="mse", mask=mask).run(model or attention(), context)
    return context.statistics, context


def kept(sample: Sample) -> dict[str, Array]:
    """What counts of each tensor, channels last where there are any: written row by row."""
    x, found = sample["x"], {name: list[Array]() for name in ("x", "q", "scores")}
    for row, mask in zip(x, sample["attention_mask"].astype(bool), strict=True):
        heads = row[mask].reshape(-1, 2, 3)
        found["x"].append(row[mask])
        found["q"].append(heads.reshape(-1, 3))
        found["scores"].append(np.einsum("ahd,bhd->hab", heads, heads).reshape(-1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def test_masked_positions_leave_no_trace() -> None:
    seen, context = run(SAMPLES)
    parts = [kept(s) for s in SAMPLES]
    for name, source in {"x": "x", "r": "x", "q": "x", "backwards": "x", "scores": "scores"}.items():
        values = np.concatenate([p[source] for p in parts])
        found, counted = seen.range_of(name), histogram_of(seen, name)
        assert found is not None
        assert counted is not None
        assert (found.low, found.high) == pytest.approx((values.min(), values.max()), rel=1e-5)
        assert found.mean_magnitude == pytest.approx(np.abs(values).mean(), rel=1e-5)
        assert found.elements * len(SAMPLES) == values.size == counted.counts.sum()
    assert [n for n in context.notices if "mask" in n] == [
        "1 of 6 observed tensors do not have the axes of the mask 'attention_mask' and are observed whole, "
        "for example 'y'"
    ]
    whole = seen.range_of("y")
    assert whole is not None
    assert whole.high > 1000


def test_channels_of_what_counts() -> None:
    seen, _ = run(SAMPLES)
    x = np.concatenate([kept(s)["x"] for s in SAMPLES])
    heads = np.concatenate([kept(s)["q"] for s in SAMPLES])
    for name, axis, values in (
        ("x", -1, x),
        ("backwards", 0, x),
        ("q", 3, heads),
        ("r", 2, x.reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 2)),
    ):
        found = seen.channels_of(name, axis)
        assert found is not None
        np.testing.assert_array_equal(found.low, values.min(0))
        np.testing.assert_array_equal(found.high, values.max(0))
        np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-4, atol=1e-5)
        assert found.count == len(values)


def test_padding_changes_nothing_at_all() -> None:
    """One sentence after the other without padding gives the same numbers as padded batches."""
    alone = [
        {"x": row[m][None], "attention_mask": np.ones((1, m.sum()), np.int64)}
        for s in SAMPLES
        for row, m in zip(s["x"], s["attention_mask"].astype(bool), strict=True)
    ]
    padded, unpadded = run(SAMPLES)[0], run(alone, mask=None)[0]
    for name in ("x", "r", "q", "backwards"):
        np.testing.assert_array_equal(padded.vectors[HISTOGRAM.kind][name], unpadded.vectors[HISTOGRAM.kind][name])
        np.testing.assert_array_equal(
            padded.vectors[RANGE.kind][name][[0, 1, 3]], unpadded.vectors[RANGE.kind][name][[0, 1, 3]]
        )


def test_a_sample_that_is_all_padding() -> None:
    nothing = {"x": np.full((2, 3, 6), 9e9, np.float32), "attention_mask": np.zeros((2, 3), np.int64)}
    seen, without = run([SAMPLES[0], nothing])[0], run(SAMPLES[:1])[0]
    for name in ("x", "r", "q", "scores", "backwards"):
        np.testing.assert_array_equal(seen.vectors[RANGE.kind][name], without.vectors[RANGE.kind][name])
        np.testing.assert_array_equal(seen.vectors[HISTOGRAM.kind][name], without.vectors[HISTOGRAM.kind][name])
    np.testing.assert_array_equal(seen.vectors["channels -1"]["x"], without.vectors["channels -1"]["x"])


def test_a_mask_with_an_axis_of_one() -> None:
    text = HEAD + "g (float[length,4] x, float[1,length] mask) => (float[length,4] y) { y = Relu (x) }"
    model = model_of(text)
    infer_shapes(model)
    sample = {"x": np.float32([[1, 2, 3, 4], [900, 900, 900, 900]]), "mask": np.float32([[1, 0]])}
    seen = run([sample], "mask", model)[0].range_of("x")
    assert seen is not None
    assert (seen.low, seen.high, seen.elements) == (1, 4, 4)


def test_masks_in_branches() -> None:
    text = (
        HEAD
        + """g (float[batch,length,6] x, int64[batch,length] attention_mask, bool c) => (float[batch,length,6] y) {
      y = If (c) <
        then_branch = t () => (float[batch,length,6] q) { q = Neg (x) },
        else_branch = e () => (float[batch,length,6] r) { r = Relu (x) }
      >
    }"""
    )
    model = model_of(text)
    infer_shapes(model)
    seen, _ = run([{**SAMPLES[0], "c": np.array(True)}], model=model)
    found, values = seen.range_of("q"), -kept(SAMPLES[0])["x"]
    assert found is not None
    assert (found.low, found.high, found.elements) == (values.min(), values.max(), values.size)
    assert seen.range_of("r") is None


@pytest.mark.parametrize(
    ("text", "mask", "words"),
    [
        (ATTENTION, "mask", "the model has no input 'mask' to serve as mask"),
        (HEAD + "g (float[2,4] x, float[2,4] m) => (float[2,4] y) { y = Add (x, m) }", "m", "have no names"),
        (HEAD + "g (float[N,4] x, float m) => (float[N,4] y) { y = Add (x, m) }", "m", "have no names"),
    ],
)
def test_wrong_masks(text: str, mask: str, words: str) -> None:
    model = model_of(text, {"heads": np.array([0, 0, 2, 3])} if text is ATTENTION else None)
    with pytest.raises(DataError, match=words):
        run(SAMPLES, mask, model)


def test_an_axis_of_the_masks_name_but_of_another_size_is_an_error() -> None:
    text = HEAD + "g (float[length,4] x, float[length] mask) => (float[N,4] y) { y = Slice (x, a, b, c) }"
    model = model_of(text, {"a": np.int64([1]), "b": np.int64([9]), "c": np.int64([0])})
    model.graph.outputs[0].shape = ir.Shape(["length", 4])
    with pytest.raises(DataError, match="cannot run on a calibration sample"):
        run([{"x": np.ones((3, 4), np.float32), "mask": np.ones(3, np.float32)}], "mask", model)
