"""AutoRound: the learned grid against its closed cases, and whole blocks against rounding to nearest."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.block_walker import BlockWalker
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import INT4, INT8, NF4, UINT4, Scales
from qcompile.compiler.params import dequantize
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Form, QuantizedWeight
from qcompile.compiler.relative_error import relative_error
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.weight_params import weight_codes, weight_params
from qcompile.errors import DataError, QCompileError
from qcompile.passes.lower.lower_blocks import LowerBlocks
from qcompile.passes.lower.lower_qdq import LowerQdq
from qcompile.passes.quantize.auto_round import AutoRound
from qcompile.passes.quantize.learned_grid import LearnedGrid, lowest
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.golden import assert_golden
from tests.passes.harness import NAMED
from tests.passes.int8 import Array, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.lower.weight_only import Place
from tests.sweep.harness import Samples, eager_target

LOWERED = [LowerBlocks(), LowerQdq()]
GRAINS = {"tensor": PerTensor(), "channel": PerChannel(1), "blocks": PerBlock(0, 16), "short block": PerBlock(0, 10)}
KINDS: dict[str, dict[str, Any]] = {
    "symmetric": {"format": INT4, "symmetric": True},
    "full range": {"format": INT4, "symmetric": True, "full_range": True},
    "asymmetric": {"format": UINT4},
    "fp16 scales": {"format": UINT4, "scales": Scales.FLOAT16},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def nearest(weight: Array, spec: QuantSpec) -> QuantizedWeight:
    params = weight_params(weight, spec)
    return QuantizedWeight(params, weight_codes(weight, params))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grain", GRAINS)
def test_nothing_learned_is_the_plan(kind: str, grain: str) -> None:
    """Also where the plan's codes are not the nearest ones."""
    weight = normal(32, 6)
    planned = nearest(weight, QuantSpec(granularity=GRAINS[grain], **KINDS[kind]))
    params, other = planned.params, planned.codes.astype(np.int32)
    other[::3] = np.clip(other[::3] + 1, lowest(params), params.spec.format.high)
    for codes in (planned.codes, other.astype(planned.codes.dtype)):
        given = QuantizedWeight(params, codes)
        grid = LearnedGrid(weight, given)
        result = grid.result()
        np.testing.assert_array_equal(result.codes.astype(int), codes.astype(int))
        np.testing.assert_array_equal(result.params.scale, params.scale)
        np.testing.assert_array_equal(result.params.zero_point, params.zero_point)
        expected = dequantize(codes.astype(np.int32), params)
        np.testing.assert_allclose(grid.weight().detach().numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_straight_through_formulas(kind: str) -> None:
    """dW~/dV = s inside the range and 0 beyond; dW~/da of a symmetric grid = s0 (q - z - u + V)."""
    import torch

    weight = normal(32, 6)
    weight[5] *= 3
    spec = QuantSpec(granularity=PerBlock(0, 16), **KINDS[kind])
    params = weight_params(weight / 2, spec)
    grid = LearnedGrid(weight, QuantizedWeight(params, weight_codes(weight, params)))
    upstream = normal(32, 6, seed=1)
    (grid.weight() * torch.from_numpy(upstream)).sum().backward()  # type: ignore[no-untyped-call]
    scale, zero = (np.repeat(a, 16, 0) for a in (params.scale, params.zero_point))
    steps = weight / scale + zero
    inside = (np.rint(steps) >= lowest(params)) & (np.rint(steps) <= spec.format.high)
    assert 0 < inside.mean() < 1
    assert grid.rounding.grad is not None
    np.testing.assert_allclose(grid.rounding.grad.numpy(), upstream * scale * inside, rtol=1e-5, atol=1e-7)
    if spec.symmetric:
        codes = np.clip(np.rint(steps), lowest(params), spec.format.high)
        each = np.where(inside, (codes - steps) * scale, (codes - zero) * scale) * upstream
        [end] = grid.ends
        assert end.grad is not None
        expected = np.add.reduceat(each, [0, 16], axis=0)
        np.testing.assert_allclose(end.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_scales_that_are_quantized_themselves_are_not_learned() -> None:
    spec = QuantSpec(INT4, PerBlock(0, 16), symmetric=True, scales=Scales.DOUBLE)
    assert LearnedGrid(normal(32, 6), nearest(normal(32, 6), spec)).parameters[1:] == []


def planned_decoder(spec: QuantSpec, samples: int = 8, rows: int = 48) -> tuple[ir.Model, CompileContext]:
    """A decoder all of whose linear layers have codes, rounded to nearest, in blocks of 16."""
    model = llama(2)
    mixing = normal(WIDTH, WIDTH, seed=3) * np.exp(-np.arange(WIDTH) / 8).astype(np.float32)
    data: list[Sample] = [{"x": normal(1, rows, WIDTH, seed=i) @ mixing.T} for i in range(samples)]
    context = CompileContext(eager_target(), Path("unused"), calibration=Samples(data))
    placed = Place(spec=spec, block=16, form=Form.WEIGHTS, lowerings={"MatMul": Lowering.BLOCKS})
    run_pipeline([*NAMED, placed, RoundToNearest()], model, context)
    context.following = LOWERED
    return model, context


def block_errors(model: ir.Model, context: CompileContext, samples: list[Sample]) -> list[float]:
    """The error of each block behind the quantized ones before it, on `samples`."""
    found = []
    for visit in BlockWalker(model, context, samples):
        found.append(relative_error(visit.float_outputs, visit.run(visit.lowered(), visit.inputs), visit.block.outputs))
    return found


@pytest.mark.parametrize("kind", ["full range", "fp16 scales"])
def test_blocks_gain_on_samples_that_nobody_saw(kind: str) -> None:
    spec = QuantSpec(**KINDS[kind])
    model, context = planned_decoder(spec)
    unseen = list(planned_decoder(spec, 12)[1].calibration or [])[8:]
    before = block_errors(model, context, unseen)
    AutoRound(iterations=60).run(model, context)
    after = block_errors(model, context, unseen)
    assert all(a < 0.99 * b for a, b in zip(after, before, strict=True)), f"{before} -> {after}"
    assert context.notices == ["auto-round: 2 of 2 blocks took learned codes"]


def few() -> tuple[ir.Model, CompileContext]:
    return planned_decoder(QuantSpec(INT4, symmetric=True, full_range=True), rows=6)


def test_blocks_keep_their_codes_where_learning_does_not_help() -> None:
    """A step so long that it leads away; and the blocks behind see the planned codes."""
    model, context = few()
    before = dict(context.plan.weights)
    AutoRound(iterations=1, batch=1).run(model, context)
    assert context.plan.weights == before
    assert "2 kept theirs: the learned codes were no better on other samples" in context.notices[-1]


def test_8_bits_and_codebooks_stay() -> None:
    for fmt in (INT8, NF4):
        model, context = planned_decoder(QuantSpec(fmt, symmetric=True), samples=2, rows=4)
        before = dict(context.plan.weights)
        AutoRound(iterations=2).run(model, context)
        assert context.plan.weights == before


def test_the_same_seed_gives_the_same_codes() -> None:
    runs = []
    for _ in range(2):
        model, context = few()
        AutoRound(iterations=8).run(model, context)
        runs.append(context.plan.weights)
    for key, first in runs[0].items():
        np.testing.assert_array_equal(first.codes, runs[1][key].codes)
        np.testing.assert_array_equal(first.params.scale, runs[1][key].params.scale)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    found = []
    for resume in (False, True):
        model, context = few()
        context.checkpoint, context.resume = tmp_path / "c", resume
        AutoRound(iterations=8).run(model, context)
        found.append(context.plan.weights)
        kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert kept
    for key, first in found[0].items():
        np.testing.assert_array_equal(first.codes, found[1][key].codes)


def test_golden() -> None:
    """Whose codes are learned, on which grid. Which of them move is a matter of the machine's last digits."""
    model, context = planned_decoder(QuantSpec(INT4, symmetric=True))
    before = dict(context.plan.weights)
    AutoRound(iterations=60).run(model, context)
    grids = [f"{unit} {weight}: {q.params.spec}\n" for (weight, unit), q in before.items()]
    touched = [f"{unit} {w}: learned\n" for (w, unit), q in context.plan.weights.items() if q is not before[w, unit]]
    assert_golden("passes/auto-round", f"# before\n{''.join(grids)}\n# after\n{''.join(touched)}")


def test_needs_samples_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = few()
    with pytest.raises(DataError, match="no calibration samples"):
        AutoRound().run(model, replace(context, calibration=None))
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(QCompileError, match="auto-round needs torch"):
        AutoRound().run(model, context)
