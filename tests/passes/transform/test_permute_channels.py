"""Channels in another order: the function stays to the bit, there and back is nothing, and patterns keep more."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.linear_layers import linear_layers
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.weight_pattern import PATTERN_2_4, Pattern
from qcompile.errors import RecipeError
from qcompile.passes.transform.channels.permute import exchangeable, permute
from qcompile.passes.transform.channels.search import channel_groups
from qcompile.passes.transform.permute_channels import PermuteChannels
from qcompile.passes.transform.sparsity.channel_order import best_order, kept_energy
from tests.passes.harness import NAMED, Arrays, assert_close, check_pass, context, model_of, outputs, run
from tests.passes.int8 import head, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.transform.channels.dead import prepared, whole
from tests.passes.transform.graphs import GRAPHS

PERCEPTRON = head() + (
    "g (float[N,8] x) => (float[N,6] y) { h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }"
)


def weights(hidden: int = 8) -> Arrays:
    return {"w": whole(8, hidden), "b": whole(hidden), "v": whole(hidden, 6, seed=1)}


def test_golden() -> None:
    values = np.zeros((8, 6), np.float32)
    values[[0, 1, 2, 3]] = normal(4, 6) + 4 * np.sign(normal(4, 6))
    model = model_of(PERCEPTRON, weights() | {"v": values})
    check_pass(PermuteChannels(), model, {"x": whole(3, 8)}, "permute-channels", NAMED)


@pytest.mark.parametrize("name", GRAPHS)
def test_any_order_leaves_the_function_and_the_inverse_restores_the_bits(name: str) -> None:
    graph = GRAPHS[name]
    model = prepared(graph.model)
    expected, stored = outputs(model, graph.feeds), [constant(v) for n in nodes(model) for v in n.inputs]
    random = np.random.default_rng(0)
    orders = {}
    for group in channel_groups(model, width=True):
        order, kinds = np.arange(group.size), exchangeable(group)
        for kind in np.unique(kinds):
            order[kinds == kind] = random.permutation(order[kinds == kind])
        orders[group] = order
    permute(model, orders, "test")
    assert_close(expected, outputs(model, graph.feeds), 1e-5)
    permute(model, {group: np.argsort(order) for group, order in orders.items()}, "test")
    for a, b in zip(stored, [constant(v) for n in nodes(model) for v in n.inputs], strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            np.testing.assert_array_equal(a, b)


def test_sums_of_whole_numbers_do_not_change_at_all() -> None:
    model, feeds = prepared(model_of(PERCEPTRON, weights(16))), {"x": whole(5, 8)}
    expected = outputs(model, feeds)
    [group] = channel_groups(model)
    permute(model, {group: np.random.default_rng(0).permutation(16)}, "test")
    np.testing.assert_array_equal(expected[0], outputs(model, feeds)[0])


def test_channels_that_meet_different_functions_do_not_change_places() -> None:
    text = head() + (
        "g (float[N,8] x) => (float[N,6] y) { h = MatMul (x, w) p, q = Split <axis = -1> (h, sizes) s = Sigmoid (p) "
        "r = Relu (q) c = Concat <axis = -1> (s, r) y = MatMul (c, v) }"
    )
    model = prepared(model_of(text, {"w": whole(8, 8), "v": whole(8, 6), "sizes": np.array([4, 4])}))
    kinds = [exchangeable(group) for group in channel_groups(model)]
    assert [len(set(k[:4])) for k in kinds] == [1] * len(kinds)
    if len(kinds) == 1:
        assert kinds[0][0] != kinds[0][4]


@pytest.mark.parametrize("pattern", ["1:4", "2:4"])
def test_brute_force_finds_little_better(pattern: str) -> None:
    """Eight columns in two groups of four: 35 ways to part them."""
    wanted = Pattern.parse(pattern)
    found, best, plain = 0.0, 0.0, 0.0
    for seed in range(10):
        energy = np.square(normal(6, 8, seed=seed) * np.exp(normal(1, 8, seed=seed)))
        found += kept_energy(energy[:, best_order(energy, np.zeros(8, int), wanted)], wanted)
        plain += kept_energy(energy, wanted)
        ways = [[0, *p, *(i for i in range(1, 8) if i not in p)] for p in combinations(range(1, 8), 3)]
        best += max(kept_energy(energy[:, way], wanted) for way in ways)
    assert found - plain > 0.8 * (best - plain) > 0


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(["1:4", "2:4", "4:8"]), st.integers(1, 3))
def test_never_worse_and_kinds_stay(seed: int, pattern: str, kinds: int) -> None:
    wanted, random = Pattern.parse(pattern), np.random.default_rng(seed)
    energy = np.square(random.standard_normal((5, 16)).astype(np.float32))
    kind = random.integers(kinds, size=16)
    order = best_order(energy, kind, wanted)
    assert sorted(order) == list(range(16))
    np.testing.assert_array_equal(kind[order], kind)
    assert kept_energy(energy[:, order], wanted) >= kept_energy(energy, wanted)


def test_a_decoder_keeps_more() -> None:
    """Hidden neurons, and the width that embeddings write: here an input, so that it stays."""
    model = llama(layers=1)
    made, feeds = context(), {"x": normal(1, 5, WIDTH)}
    expected = outputs(model, feeds)

    def kept() -> float:
        down = next(layer for layer in linear_layers(model)[0] if layer.weight.name == "w_down0")
        return kept_energy(np.square(down.matrix()[0]), PATTERN_2_4)

    before = kept()
    run(model, *NAMED, PermuteChannels(), on=made)
    assert kept() > 1.02 * before
    assert_close(expected, outputs(model, feeds), 1e-5)
    assert any(n.startswith("permute-channels: the channels of 1 group are numbered anew") for n in made.notices)


def test_a_weight_that_has_the_pattern_keeps_it() -> None:
    text = head() + (
        "g (float[N,8] x) => (float[N,6] y, float[N,6] z) "
        "{ h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) z = MatMul (r, u) }"
    )
    dense = np.zeros((8, 6), np.float32)
    dense[[0, 1, 2, 3]] = 4 + np.abs(normal(4, 6))
    sparse = np.where(PATTERN_2_4.largest(normal(6, 8)), 1, 0).astype(np.float32).T
    model = model_of(text, {"w": whole(8, 8), "v": dense, "u": sparse})
    run(model, *NAMED, PermuteChannels())
    weights = {layer.weight.name: layer.matrix()[0] for layer in linear_layers(model)[0]}
    assert PATTERN_2_4.holds(weights["u"])


def test_what_is_no_pattern() -> None:
    recipe = Recipe(name="r", steps=(Step(name="permute-channels", options={"pattern": "4:2"}),))
    with pytest.raises(RecipeError, match="'4:2' is no pattern: write N:M"):
        recipe.passes()
