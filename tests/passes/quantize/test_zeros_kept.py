"""A weight that is 0 stays 0, whatever chooses its code: a pruned layer keeps its pattern to the end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.formats import FORMATS
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.linear_layers import linear_layers
from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.passes import Pass
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.compiler.weight_params import weight_codes, weight_params
from qcompile.compiler.weight_pattern import PATTERN_2_4, Pattern, weight_pattern
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.quantize.ada_round import AdaRound
from qcompile.passes.quantize.auto_round import AutoRound
from qcompile.passes.quantize.gptq import Gptq
from qcompile.passes.quantize.hqq import Hqq
from qcompile.passes.quantize.learned_grid import LearnedGrid
from qcompile.passes.quantize.place_int8 import PlaceInt8
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from qcompile.passes.quantize.search_clip import SearchClip
from qcompile.passes.quantize.spend_bits import SpendBits
from qcompile.passes.transform.equalize_layers import EqualizeLayers
from qcompile.passes.transform.smooth_quant import SmoothQuant
from qcompile.passes.transform.split_outliers import SplitOutliers
from tests.compiler.walks import ready
from tests.passes.harness import NAMED
from tests.passes.int8 import Array, normal
from tests.passes.llama import llama
from tests.passes.quantize.test_gptq import sentences

pytestmark = pytest.mark.usefixtures("one_thread")

STORED = sorted(set(FORMATS) - {"int32"})
GRAINS = [PerTensor(), PerChannel(0), PerChannel(1), PerBlock(0, 8), PerBlock(1, 3)]


def pruned(weight: Array, pattern: Pattern = PATTERN_2_4) -> Array:
    """A weight [K, N] of which the largest values along K are kept."""
    return np.where(pattern.largest(np.abs(weight.T)).T, weight, np.float32(0))


@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(STORED),
    grain=st.sampled_from(GRAINS),
    symmetric=st.booleans(),
    pattern=st.sampled_from(["1:4", "2:4", "4:8"]),
    shift=st.sampled_from([0.0, 3.0]),
)
def test_every_format_has_a_code_for_zero(
    seed: int, name: str, grain: PerTensor | PerChannel | PerBlock, symmetric: bool, pattern: str, shift: float
) -> None:
    weight = pruned((normal(16, 6, seed=seed) + shift).astype(np.float32), Pattern.parse(pattern))
    params = weight_params(weight, QuantSpec(FORMATS[name], grain, symmetric=symmetric))
    found = np.asarray(dequantize(quantize(weight, params), params))
    assert not found[weight == 0].any()


def sparse_llama() -> ir.Model:
    model = llama(layers=1)
    for layer in linear_layers(model)[0]:
        layer.write(pruned(layer.matrix()[0].T).T[None])
    return model


def weights_only(fmt: str, *passes: Pass, symmetric: bool | None = None) -> list[Pass]:
    placed = PlaceWeights(format=fmt, block_size=16, symmetric=symmetric)  # type: ignore[arg-type]
    return [*NAMED, placed, RoundToNearest(), *passes]


STATIC = [*NAMED, Calibrate(), PlaceInt8(), RoundToNearest()]
WAYS: dict[str, list[Pass]] = {
    "nearest": weights_only("int4", symmetric=True),
    "nearest, zero points": weights_only("uint4"),
    "clipped": weights_only("uint4", SearchClip()),
    "hqq": weights_only("uint4", Hqq()),
    "gptq": weights_only("int4", Gptq()),
    "gptq, zero points, clipped": weights_only("uint4", SearchClip(power=0.5), Gptq(act_order=False)),
    "gptq on nf4": weights_only("nf4", Gptq()),
    "gptq on nvfp4": weights_only("nvfp4", Gptq()),
    "gptaq": weights_only("int4", Gptq(alpha=0.5)),
    "gptq on some raised to int8": [
        *NAMED,
        PlaceWeights(format="int4", block_size=16),
        SpendBits(bits=7),
        RoundToNearest(),
        Gptq(),
    ],
    "auto-round": weights_only("uint4", AutoRound(iterations=5, samples=4)),
    "ada-round": [*STATIC, AdaRound(iterations=20, samples=4)],
    "gptq on static int8": [*STATIC, Gptq()],
}


@pytest.mark.parametrize("way", WAYS)
def test_no_method_gives_a_zero_another_code(way: str) -> None:
    model, context = ready(sparse_llama(), sentences(4), WAYS[way])
    planned = context.plan.weights
    assert len(planned) == 7
    for (name, _), found in planned.items():
        weight = constant(next(v for n in nodes(model) for v in n.inputs if v is not None and v.name == name))
        assert weight is not None
        codes = found.codes.astype(np.float32 if not found.params.spec.format.is_integer else np.int32)
        values = np.asarray(dequantize(codes, found.params))
        assert not values[weight == 0].any()
        assert np.count_nonzero(values) > values.size / 4
        assert weight_pattern(values, 0) is not None


def test_some_layers_are_raised() -> None:
    _, context = ready(sparse_llama(), sentences(4), WAYS["gptq on some raised to int8"])
    assert {found.params.spec.format.name for found in context.plan.weights.values()} == {"int4", "int8"}


def test_zero_points_between_codes_are_not_for_pruned_layers() -> None:
    _, context = ready(sparse_llama(), sentences(4), WAYS["hqq"])
    assert any("hqq: 7 pruned layers keep their zero points" in notice for notice in context.notices)
    assert all(found.params.zero_point.dtype == np.int32 for found in context.plan.weights.values())


def test_a_learned_grid_moves_around_zero() -> None:
    """Roundings at their bound and another range, which moves the zero point."""
    import torch

    weight = pruned(normal(16, 6) + np.float32(0.3))
    params = weight_params(weight, QuantSpec(FORMATS["uint4"], PerChannel(1)))
    grid = LearnedGrid(weight, QuantizedWeight(params, weight_codes(weight, params)))
    with torch.no_grad():
        grid.rounding.fill_(0.5)
        grid.ends[0].mul_(0.6)
    found = grid.result()
    assert (found.params.zero_point != params.zero_point).any()
    assert not np.asarray(dequantize(found.codes.astype(np.int32), found.params))[weight == 0].any()
    assert not grid.weight().detach().numpy()[weight == 0].any()


@pytest.mark.parametrize(
    "passes",
    [[Calibrate(), SmoothQuant()], [Calibrate(), EqualizeLayers()], [Calibrate(), SplitOutliers(threshold=2.0)]],
    ids=lambda passes: passes[-1].name,
)
def test_rewrites_keep_the_pattern(passes: list[Pass]) -> None:
    """Factors that fold into a weight, and rows that become a product of their own."""
    model, _ = ready(sparse_llama(), sentences(4), [*NAMED, *passes])
    layers = [layer for layer in linear_layers(model)[0] if "outliers" not in layer.name]
    assert len(layers) == 7
    for layer in layers:
        assert weight_pattern(layer.matrix()[0], 1) == PATTERN_2_4, layer.name
