"""Histograms: what the graph counts is what numpy counts, and coarser ones lose nothing but width."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.histogram import BINS, HALF, HIGHEST, HISTOGRAM, LOWEST, coarser, histogram_of
from qcompile.compiler.observation import observe
from qcompile.compiler.statistics import RANGE, StatisticsTable, Vector
from qcompile.passes.prepare.infer_shapes import infer_shapes
from tests.passes.harness import Arrays, model_of, outputs

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
RANDOM = np.random.default_rng(0)
Array = npt.NDArray[Any]


def exponent(x: Array) -> int:
    """The smallest exponent for which HALF bins on each side reach the largest magnitude."""
    largest = float(np.abs(x).max(initial=0.0))
    return max(int(np.frexp(largest)[1]) - HALF.bit_length() + 1, LOWEST) if largest else LOWEST


def counted(x: Array, at: int) -> Array:
    bins = np.floor(x.astype(np.float64) * 2.0**-at).astype(int).reshape(-1)
    return np.bincount(bins + HALF, minlength=BINS)


def seen(model: ir.Model, feeds: Arrays, *names: str, on_device: bool = False) -> dict[str, Vector]:
    infer_shapes(model)
    found = observe(model, {name: [HISTOGRAM] for name in names}, on_device=on_device)
    said = found.read(outputs(found.model, feeds))
    return {t: v for b, of in zip(found.blocks, said, strict=True) for t, v in zip(b.tensors, of, strict=True)}


def of_input(x: Array, on_device: bool = False) -> Vector:
    dims = ",".join(map(str, x.shape))
    text = (
        f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Neg (x) }}"
        if x.ndim
        else "g (float x) => (float y) { y = Neg (x) }"
    )
    return seen(model_of(HEAD + text), {"x": x}, "x", on_device=on_device)["x"]


def assert_counts(vector: Vector, x: Array) -> None:
    assert vector[0] == exponent(x)
    np.testing.assert_array_equal(vector[1:], counted(x, exponent(x)))


normal = RANDOM.standard_normal((3, 50)).astype(np.float32)
CASES: dict[str, Array] = {
    "normal": normal,
    "after a Relu": np.maximum(normal, 0),
    "constant": np.full((4, 4), 3.25, np.float32),
    "zeros": np.zeros((4, 4), np.float32),
    "a power of two": np.float32([1.0, -1.0, 0.5]),
    "just below a power of two": np.nextafter(np.float32([1.0, 1.0]), np.float32(0)),
    "a negative power of two": np.float32([-1.0, 0.25]),
    "tiny": normal * np.float32(1e-30),
    "denormal": np.float32([1e-40, -1e-41, 0]),
    "huge": np.float32([3.4e38, -3.4e38, 1.0, -1.0]),
    "a mask": np.float32([0, 0, np.finfo(np.float32).min]),
    "a scalar": np.float32(2.5),
    "six axes": normal[:, :48].reshape(1, 3, 2, 4, 3, 2),
    "no elements": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("on_device", [False, True], ids=["codes", "counts"])
@pytest.mark.parametrize("case", CASES)
def test_the_graph_counts_as_numpy(case: str, on_device: bool) -> None:
    assert_counts(of_input(np.asarray(CASES[case]), on_device), np.asarray(CASES[case]))


@pytest.mark.parametrize("on_device", [False, True], ids=["codes", "counts"])
def test_infinity_disturbs_nothing_else(on_device: bool) -> None:
    vector = of_input(np.float32([np.inf, -np.inf, 1.0, 2.0]), on_device)
    assert vector[0] == HIGHEST
    assert vector[1:].sum() == 4


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("on_device", [False, True], ids=["codes", "counts"])
def test_histograms_in_branches(c: bool, on_device: bool) -> None:
    text = """g (float[3,50] x, bool c) => (float[3,50] y) {
      y = If (c) <
        then_branch = t () => (float[3,50] p) { p = Exp (x) },
        else_branch = e () => (float[3,50] q) { q = Relu (x) }
      >
    }"""
    found = seen(model_of(HEAD + text), {"x": normal, "c": np.array(c)}, "x", "p", "q", "y", on_device=on_device)
    result = np.maximum(normal, 0)
    if c:
        with np.errstate(all="ignore"):
            result = outputs(model_of(HEAD + "g (float[3,50] x) => (float[3,50] y) { y = Exp (x) }"), {"x": normal})[0]
    assert_counts(found["x"], normal)
    assert_counts(found["y"], result)
    taken, other = ("p", "q") if c else ("q", "p")
    assert_counts(found[taken], result)
    np.testing.assert_array_equal(found[other], HISTOGRAM.identity())


def test_in_a_loop_there_is_none_and_it_is_named() -> None:
    text = """g (float[5] x, int64 n) => (float[5] y) {
      y = Loop (n, , x) < body = b (int64 i, bool k, float[5] s) => (bool go, float[5] t) {
        go = Identity (k) t = Exp (s)
      } >
    }"""
    found = observe(model_of(HEAD + text), {name: [RANGE, HISTOGRAM] for name in ("x", "t", "y")})
    assert found.uncounted == ["t"]
    assert [(b.statistic, b.tensors) for b in found.blocks] == [(RANGE, ("t", "x", "y")), (HISTOGRAM, ("x", "y"))]


def scaled(seed: int, size: int, scale: int) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32) * np.float32(2.0**scale)


vectors = st.builds(scaled, st.integers(0, 1000), st.integers(0, 60), st.integers(-140, 120))


def vector_of(x: Array) -> Vector:
    return np.concatenate([[exponent(x)], counted(x, exponent(x))]).astype(np.float64)


@given(x=vectors, steps=st.integers(0, 30))
def test_a_coarser_histogram_is_that_of_the_values_in_wider_bins(x: Array, steps: int) -> None:
    at = exponent(x)
    np.testing.assert_array_equal(coarser(counted(x, at), steps), counted(x, at + steps))


@given(parts=st.lists(vectors, min_size=1, max_size=6), order=st.randoms())
def test_merging_in_any_order_is_counting_all(parts: list[Array], order: Any) -> None:
    everything = vector_of(np.concatenate(parts))
    order.shuffle(parts)
    merged = reduce(HISTOGRAM.merge, map(vector_of, parts), HISTOGRAM.identity())
    assert merged.tobytes() == everything.tobytes()
    halves = [reduce(HISTOGRAM.merge, map(vector_of, p), HISTOGRAM.identity()) for p in (parts[::2], parts[1::2])]
    assert HISTOGRAM.merge(*halves).tobytes() == everything.tobytes()


def test_many_tensors_merge_at_once() -> None:
    first = np.stack([vector_of(normal), vector_of(normal * np.float32(100)), HISTOGRAM.identity()])
    second = np.stack([vector_of(normal * np.float32(9)), vector_of(normal), vector_of(normal)])
    expected = [HISTOGRAM.merge(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_array_equal(HISTOGRAM.merge(first, second), expected)


def test_in_words() -> None:
    table = StatisticsTable(1)
    table.update(HISTOGRAM.kind, {"x": vector_of(np.float32([-1, 0, 3])), "never": HISTOGRAM.identity()})
    found = histogram_of(table, "x")
    assert found is not None
    edges, counts = found.occupied()
    assert (edges[0], edges[-1]) == (-1, 3 + found.width)
    assert (found.width, counts.sum(), counts[0], counts[-1]) == (2.0**-9, 3, 1, 1)
    rest = found.without(
        type(found)(exponent(np.float32([0.5])), counted(np.float32([0]), exponent(np.float32([0.5]))))
    )
    assert rest.counts.sum() == 2
    assert histogram_of(table, "never") is None
    assert histogram_of(table, "unknown") is None
