"""Calibration: what it sees and what it refuses."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import UINT8
from qcompile.compiler.histogram import HISTOGRAM
from qcompile.compiler.passes import StatisticRequest
from qcompile.compiler.printer import print_model
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import RANGE, Channels, StatisticsTable
from qcompile.compiler.targets import target_named
from qcompile.errors import DataError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.prepare.infer_shapes import infer_shapes
from tests.passes.harness import model_of
from tests.sweep.harness import RECIPE, Samples, compile_in_memory, eager_target

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
CHAIN = HEAD + "g (float[N,4] x) => (float[N,4] y) { h = MatMul (x, w) l = Log (h) y = Tanh (l) }"
W = np.eye(4, dtype=np.float32) * np.float32([0.1, 1, 2, 3])


def positive(count: int = 12) -> list[Sample]:
    """Samples of 1 to 3 rows on which every tensor of CHAIN is finite."""
    random = np.random.default_rng(0)
    return [{"x": random.uniform(0.1, 9, (1 + i % 3, 4)).astype(np.float32)} for i in range(count)]


def run(
    samples: Sequence[Sample] | Samples,
    names: Sequence[str] = ("x", "h", "l", "y"),
    *,
    model: ir.Model | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> StatisticsTable:
    source = samples if isinstance(samples, Samples) else Samples(samples)
    context = CompileContext(target_named("cpu"), Path("unused"), source, checkpoint=checkpoint, resume=resume)
    context.requests = [StatisticRequest(name, RANGE) for name in names]
    Calibrate(**options).run(model or model_of(CHAIN, {"w": W}), context)
    return context.statistics


def test_ranges_are_numpys_over_all_samples() -> None:
    samples = positive()
    seen = run(samples)
    assert seen.samples == 12
    xs = np.concatenate([s["x"] for s in samples])
    for name, values in {"x": xs, "h": xs @ W, "l": np.log(xs @ W), "y": np.tanh(np.log(xs @ W))}.items():
        found = seen.range_of(name)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((values.min(), values.max()), rel=2e-6)
        assert found.mean_magnitude == pytest.approx(np.abs(values).mean(), rel=1e-5)
        assert found.elements == xs.size / 12
    assert seen.range_of("x").low == xs.min()  # type: ignore[union-attr]


def test_shards_merge_to_the_whole() -> None:
    samples = positive(11)
    whole = run(samples).vectors["range"]
    parts = [run(part).vectors["range"] for part in (samples[:4], samples[4:5], samples[5:])]
    for name, vector in whole.items():
        merged = RANGE.identity()
        for part in parts:
            merged = RANGE.merge(merged, part[name])
        np.testing.assert_array_equal(merged[[0, 1, 3]], vector[[0, 1, 3]])
        np.testing.assert_allclose(merged[2], vector[2], rtol=1e-12)


def test_the_model_is_left_alone_and_constants_are_not_observed() -> None:
    model = model_of(CHAIN, {"w": W})
    before = print_model(model, provenance=True)
    seen = run(positive(2), ["w", "x", "nothing of that name"], model=model)
    assert print_model(model, provenance=True) == before
    assert set(seen.vectors["range"]) == {"x"}


@pytest.mark.parametrize(("value", "tensors"), [(-1.0, "l"), (np.nan, "xhl")], ids=str)
def test_a_tensor_with_nan_and_its_sample_are_named(value: float, tensors: str) -> None:
    samples = positive(6)
    samples[4] = {"x": np.full((2, 4), value, np.float32)}
    with pytest.raises(DataError, match=rf"tensor '[{tensors}]' holds NaN for calibration sample 5"):
        run(samples)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_a_bound_and_no_fault(value: float) -> None:
    """As in a mask before a Softmax; the tensor stays float."""
    text = HEAD + "g (float[N,4] x) => (float[N,4] y) { y = Softmax (x) }"
    seen = run([{"x": np.float32([[1, value, 2, 3]])}], ["x"], model=model_of(text)).range_of("x")
    assert seen is not None
    assert value in (seen.low, seen.high)


def test_one_nan_among_numbers_is_seen() -> None:
    for position in range(4):
        row = np.ones((1, 4), np.float32)
        row[0, position] = np.nan
        with pytest.raises(DataError, match="tensor 'x'"):
            run([{"x": row}])


def test_a_mask_of_the_lowest_number_is_finite() -> None:
    lowest = np.finfo(np.float32).min
    text = HEAD + "g (float[N,4] x, float[N,4] mask) => (float[N,4] y) { k = Add (x, mask) y = Softmax (k) }"
    sample = {"x": np.zeros((2, 4), np.float32), "mask": np.float32([[0, 0, lowest, lowest]] * 2)}
    found = run([sample], ["mask", "k"], model=model_of(text)).range_of("mask")
    assert found is not None
    assert (found.low, found.high) == (lowest, 0)


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        run([])


DECODER = (
    HEAD
    + """g (float[1,P,4] past, float[1,1,4] x) => (float[1,Q,4] y, float[1,Q,4] present) {
  present = Concat <axis = 1> (past, x)
  p = MatMul (present, w)
  y = Tanh (p)
}"""
)


def test_a_decoder_whose_past_is_empty_at_first_compiles() -> None:
    random = np.random.default_rng(0)
    samples = [
        {"past": random.standard_normal((1, n, 4)).astype(np.float32), "x": np.ones((1, 1, 4), np.float32)}
        for n in (0, 3, 0, 5)
    ]
    model = model_of(DECODER, {"w": W})
    found = run(samples, ["past", "present"], model=model).range_of("past")
    pasts = np.concatenate([s["past"].reshape(-1) for s in samples])
    assert found is not None
    assert (found.low, found.high, found.elements) == (pasts.min(), pasts.max(), 8)
    compiled = compile_in_memory(ir.to_proto(model), samples, RECIPE)
    assert set(compiled.context.plan.units) | set(compiled.context.plan.kept_float)


def test_a_tensor_that_is_always_empty_was_not_computed() -> None:
    empty = {"past": np.zeros((1, 0, 4), np.float32), "x": np.ones((1, 1, 4), np.float32)}
    assert run([empty] * 2, ["past"], model=model_of(DECODER, {"w": W})).range_of("past") is None


def test_samples_are_not_kept() -> None:
    alive: list[weakref.ref[npt.NDArray[Any]]] = []
    most = 0

    class Made(Samples):
        def __len__(self) -> int:
            return 40

        def __iter__(self) -> Iterator[Sample]:
            nonlocal most
            for i in range(len(self)):
                sample = {"x": np.full((1, 4), 1.0 + i, np.float32)}
                alive.append(weakref.ref(sample["x"]))
                yield sample
                most = max(most, sum(ref() is not None for ref in alive))

    assert run(Made()).samples == 40
    assert most <= 8, "a few in flight, however many there are"


METHODS = ("min-max", "moving-average", "percentile", "entropy", "mse", "auto")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "x",
    [
        np.full((2, 4), 3.0),
        np.zeros((2, 4)),
        np.array([[1e-40, -1e-41, 0, 1e-42]]),
        np.array([[0, 1, 2, -3.4e38]]),
        np.array([[0, 1, 2, -np.inf]]),
        np.ones((1, 4)),
    ],
    ids=["constant", "zeros", "denormals", "a mask", "a mask of infinity", "one sample"],
)
def test_difficult_tensors_compile(x: npt.NDArray[Any], method: str) -> None:
    text = HEAD + "g (float[N,4] x) => (float[N,4] y) { r = Relu (x) h = MatMul (r, w) t = Tanh (x) y = Add (h, t) }"
    samples = [{"x": x.astype(np.float32)}]
    recipe = find_recipe("int8-static").with_overrides([f"calibrate.method={method}"])
    compiled = compile_in_memory(ir.to_proto(model_of(text, {"w": W})), samples, recipe.passes(), eager_target())
    assert all(np.isfinite(params.scale).all() for params in compiled.context.plan.tensors.values())
    if np.abs(x).max() > 1e30:
        assert "x" not in compiled.context.plan.tensors


@pytest.mark.parametrize("method", ["min-max", "auto"])
def test_scalars_empty_tensors_and_six_axes(method: str) -> None:
    text = """g (float[N,2,1,2,1,3] x, float[M,4] e, float s) => (float[A] y) {
      p = Neg (x) f = Relu (e) t = Exp (s) q = Mul (p, t) y = Reshape (q, flat)
    }"""
    model = model_of(HEAD + text, {"flat": np.int64([-1])})
    infer_shapes(model)
    x = np.random.default_rng(0).standard_normal((2, 2, 1, 2, 1, 3)).astype(np.float32)
    sample = {"x": x, "e": np.zeros((0, 4), np.float32), "s": np.array(1.5, np.float32)}
    seen = run([sample] * 5, ["x", "p", "q", "e", "f", "s", "t", "y"], model=model, method=method)
    spec = QuantSpec(UINT8)
    clips = {name: seen.clip_of(name, spec) for name in ("x", "p", "q", "e", "f", "s", "t", "y")}
    assert clips["e"] is None
    assert clips["f"] is None
    assert clips["s"] is not None
    assert clips["s"].high == 1.5
    for name, values in {"x": x, "p": -x}.items():
        found = clips[name]
        assert found is not None
        assert values.min() <= found.low < 0 < found.high <= values.max()


def test_a_channel_of_zeros() -> None:
    x = np.float32([[1, 0, -2, 5], [3, 0, 4, -1]])
    context = CompileContext(target_named("cpu"), Path("unused"), Samples([{"x": x}]))
    context.requests = [StatisticRequest("x", Channels(-1))]
    Calibrate().run(model_of(CHAIN, {"w": W}), context)
    found = context.statistics.channels_of("x", -1)
    assert found is not None
    assert (found.low[1], found.high[1], found.mean_magnitude[1], found.count) == (0, 0, 0, 2)


def test_nan_names_the_sample_that_holds_it_with_any_method() -> None:
    samples = positive(6)
    samples[3] = {"x": np.float32([[1, np.nan, 2, 3]])}
    for method in METHODS:
        with pytest.raises(DataError, match="tensor 'x' holds NaN for calibration sample 4"):
            run(samples, method=method)


def test_tensors_in_a_loop_are_calibrated_by_their_range() -> None:
    text = """g (float[5] x, int64 n) => (float[5] y) {
      y = Loop (n, , x) < body = b (int64 i, bool k, float[5] s) => (bool go, float[5] t) {
        go = Identity (k) t = Tanh (s)
      } >
    }"""
    context = CompileContext(
        target_named("cpu"), Path("unused"), Samples([{"x": np.ones(5, np.float32), "n": np.array(2)}])
    )
    context.requests = [StatisticRequest(name, RANGE) for name in ("x", "t", "y")]
    Calibrate(method="entropy").run(model_of(HEAD + text), context)
    assert context.notices == ["1 tensors in the body of a Loop have no histogram, and their clip is the range: 't'"]
    clip = context.statistics.clip_of("t", QuantSpec(UINT8))
    assert clip is not None
    assert (clip.high, clip.method) == (np.tanh(np.float32(1)), "min-max")


def test_shards_of_histograms_merge_to_the_whole_bit_for_bit() -> None:
    samples = positive(11)
    samples[2] = {"x": samples[2]["x"] * np.float32(1000)}
    whole = run(samples, method="mse").vectors[HISTOGRAM.kind]
    parts = [run(part, method="mse").vectors[HISTOGRAM.kind] for part in (samples[5:], samples[:1], samples[1:5])]
    for name, vector in whole.items():
        merged = HISTOGRAM.identity()
        for part in parts:
            merged = HISTOGRAM.merge(merged, part[name])
        assert merged.tobytes() == vector.tobytes()


def test_auto_says_what_it_chose() -> None:
    context = CompileContext(target_named("cpu"), Path("unused"), Samples(positive()))
    context.requests = [StatisticRequest(name, RANGE) for name in ("x", "h", "l", "y")]
    Calibrate(method="auto").run(model_of(CHAIN, {"w": W}), context)
    [notice] = context.notices
    assert notice.startswith("calibration auto: ")
    assert sum(int(part.split()[0]) for part in notice.removeprefix("calibration auto: ").split(", ")) == 4
