"""Patterns N:M: found in float weights and in codes, and nowhere else."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.weight_pattern import PATTERN_2_4, Pattern, has_sparse_weights, is_sparse, weight_pattern
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal


def pruned(weight: np.ndarray, summed: int, pattern: Pattern = PATTERN_2_4) -> np.ndarray:
    """The largest values of `weight` that `pattern` allows along `summed`."""
    rows = np.moveaxis(weight, summed, -1)
    return np.moveaxis(np.where(pattern.largest(np.abs(rows)), rows, 0), -1, summed)


@given(st.integers(0, 2**31), st.sampled_from([(8, 3), (4, 12), (5, 8, 2)]), st.floats(0.2, 0.9))
def test_against_the_loops_of_the_documentation(seed: int, shape: tuple[int, ...], density: float) -> None:
    random = np.random.default_rng(seed)
    for summed in range(len(shape)):
        weight = random.standard_normal(shape) * (random.random(shape) < density)
        rows = np.moveaxis(weight, summed, -1)
        counts = [
            np.count_nonzero(rows[index][4 * c : 4 * c + 4])
            for index in product(*map(range, rows.shape[:-1]))
            for c in range(rows.shape[-1] // 4)
        ]
        expected = rows.shape[-1] % 4 == 0 and max(counts, default=3) <= 2 and bool(weight.any())
        assert is_sparse(weight, summed) == expected


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm", "Gemm transposed", "behind codes"])
@pytest.mark.parametrize("sparse", [True, False])
def test_along_what_each_operator_sums_over(op: str, sparse: bool) -> None:
    summed = {"Conv": 1, "MatMul": 0, "Gemm": 0, "Gemm transposed": 1, "behind codes": 0}[op]
    weight = normal(8, 8, 3, 3) if op == "Conv" else normal(8, 8)
    weight = pruned(weight, summed if sparse else 1 - summed)
    text, weights = {
        "Conv": ("g (float[1,8,8,8] x) => (float[1,8,6,6] y) { y = Conv (x, w) }", {"w": weight}),
        "MatMul": ("g (float[2,8] x) => (float[2,8] y) { y = MatMul (x, w) }", {"w": weight}),
        "Gemm": ("g (float[2,8] x) => (float[2,8] y) { y = Gemm (x, w) }", {"w": weight}),
        "Gemm transposed": ("g (float[2,8] x) => (float[2,8] y) { y = Gemm <transB = 1> (x, w) }", {"w": weight}),
        "behind codes": (
            "g (float[2,8] x) => (float[2,8] y) { d = DequantizeLinear (w, s) y = MatMul (x, d) }",
            {"w": np.sign(weight).astype(np.int8), "s": np.float32(0.1)},
        ),
    }[op]
    assert has_sparse_weights(model_of(head() + text, weights)) is sparse


def test_zeros_alone_are_no_pattern() -> None:
    assert not is_sparse(np.zeros((8, 8)), 0)


@pytest.mark.parametrize("name", ["1:4", "2:4", "3:8", "4:8", "8:16"])
def test_every_pattern_is_read_off_the_weight(name: str) -> None:
    pattern = Pattern.parse(name)
    weight = normal(64, 48)
    for summed in (0, 1):
        found = weight_pattern(pruned(weight, summed, pattern), summed)
        assert found == pattern
        assert str(found) == name
    assert weight_pattern(weight, 0) is None
    assert weight_pattern(pruned(weight, 0, pattern), 1) != pattern


@pytest.mark.parametrize("text", ["", "2", "4:4", "0:4", "5:4", "2:4:8", "-2:4"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is no pattern: write N:M with 0 < N < M"):
        Pattern.parse(text)


def test_the_largest_of_each_group_the_first_of_equal_ones() -> None:
    scores = np.array([[3.0, 1, 2, 4, 5, 5, 5, 5], [0, 0, 1, 0, 4, 3, 2, 1]])
    kept = [[1, 0, 0, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]]
    assert PATTERN_2_4.largest(scores).tolist() == np.array(kept, bool).tolist()
    torch = pytest.importorskip("torch")
    assert PATTERN_2_4.largest(torch.from_numpy(scores)).tolist() == np.array(kept, bool).tolist()
