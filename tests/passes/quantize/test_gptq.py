"""GPTQ in whole models: less error than rounding to nearest, on the grids of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import FORMATS
from qcompile.compiler.passes import Phase
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.specs import QuantSpec
from qcompile.errors import DataError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.quantize import gptq
from qcompile.passes.quantize.gptq import Gptq
from qcompile.passes.quantize.place_dynamic import PlaceDynamic
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.compiler.walks import QUANTIZED, ready, whole
from tests.golden import assert_golden
from tests.passes.harness import NAMED, model_of
from tests.passes.int8 import head, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.quantize.test_ada_round import correlated, narrow
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, LINEAR, LINEAR_WEIGHTS, images, rows
from tests.sweep.harness import Samples

DYNAMIC_LOWER = [p for p in find_recipe("int8-dynamic").passes() if p.phase is Phase.LOWER]
BLOCKS = [*NAMED, PlaceDynamic(block_size=16)]


def blocks(model: ir.Model, feeds: Sequence[Sample], spec: QuantSpec) -> tuple[ir.Model, CompileContext]:
    """`model` with the weights of its layers in blocks of 16, nearest codes; `spec` says of what format."""
    model, context = ready(model, feeds, BLOCKS)
    context.following = DYNAMIC_LOWER
    for name, unit in context.plan.units.items():
        assert unit.weight_spec is not None
        fit = replace(spec, granularity=unit.weight_spec.granularity)
        context.plan.units[name] = replace(unit, weight_spec=fit)
    RoundToNearest().run(model, context)
    return model, context


def solved(
    model: ir.Model,
    feeds: Sequence[Sample],
    tested: Gptq,
    checkpoint: Path | None = None,
) -> tuple[ir.Model, CompileContext, QuantPlan]:
    """The model in int8-static with 4-bit weights, its context with the codes found, and the plan before."""
    model, context = ready(model, feeds, QUANTIZED, narrow(4))
    before = replace(context.plan, weights=dict(context.plan.weights))
    context.checkpoint, context.resume = checkpoint, checkpoint is not None and checkpoint.exists()
    tested.run(model, context)
    return model, context, before


def noise(model: ir.Model, context: CompileContext, plan: QuantPlan, feeds: Sequence[Sample]) -> float:
    exact, given = whole(model, feeds), whole(lowered_copy(model, context, plan), feeds)
    return float(np.mean([np.square(g["y"] - e["y"]).mean() for g, e in zip(given, exact, strict=True)]))


def gain(model: ir.Model, context: CompileContext, tested: Gptq, feeds: Sequence[Sample]) -> float:
    """The error on `feeds` as a share of the error before."""
    before = replace(context.plan, weights=dict(context.plan.weights))
    nearest = noise(model, context, before, feeds)
    tested.run(model, context)
    for key, planned in before.weights.items():
        found = context.plan.weights[key]
        assert found.params is planned.params
        assert found.codes.dtype == planned.codes.dtype
        assert found.codes.shape == planned.codes.shape
    return noise(model, context, context.plan, feeds) / nearest


CASES: dict[str, Any] = {"images": (IMAGES, IMAGE_WEIGHTS, images, 0.6), "rows": (LINEAR, LINEAR_WEIGHTS, rows, 0.9)}


@pytest.mark.parametrize("case", CASES)
def test_four_bits_gain_in_static_models(case: str) -> None:
    """Convolutions, grouped ones too, and Gemm; inputs as their codes say."""
    text, weights, make, least = CASES[case]
    every = make(24)
    model, context = ready(model_of(text, dict(weights)), every[:12], QUANTIZED, narrow(4))
    assert gain(model, context, Gptq(), every[12:]) < least
    assert all(np.abs(q.codes.astype(int)).max() <= 7 for q in context.plan.weights.values()), "-8 is not used"


SPECS = {
    "int4": QuantSpec(FORMATS["int4"], symmetric=True),
    "full range": QuantSpec(FORMATS["int4"], symmetric=True, full_range=True),
    "uint4": QuantSpec(FORMATS["uint4"]),
    "int2": QuantSpec(FORMATS["int2"], symmetric=True, full_range=True),
}


def sentences(count: int, length: int = 40, seed: int = 0) -> list[Sample]:
    """Vectors of which some directions are common, as those of words are."""
    mixing = correlated(WIDTH, WIDTH, seed=1)
    return [{"x": (normal(1, length, WIDTH, seed=seed + i) @ mixing).astype(np.float32)} for i in range(count)]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("kind", SPECS)
def test_a_decoder_in_blocks(kind: str, alpha: float) -> None:
    model, context = blocks(llama(), sentences(8), SPECS[kind])
    assert gain(model, context, Gptq(alpha=alpha), sentences(4, seed=100)) < 0.85


def test_the_same_samples_give_the_same_codes() -> None:
    first, second = (blocks(llama(1), sentences(3), SPECS["uint4"]) for _ in range(2))
    for model, context in (first, second):
        Gptq().run(model, context)
    for key, found in first[1].plan.weights.items():
        np.testing.assert_array_equal(found.codes, second[1].plan.weights[key].codes)


def test_a_killed_run_goes_on_to_the_same_codes(tmp_path: Path) -> None:
    found = []
    for name in ("whole", "resumed"):
        model, context = blocks(llama(1), sentences(3), SPECS["int4"])
        context.checkpoint, context.resume = tmp_path / f"{name}.checkpoint", False
        Gptq().run(model, context)
        found.append(context.plan.weights)
        if name == "resumed":
            files = sorted(tmp_path.glob(f"{name}*/*.npz"))
            assert len(files) == 4, "q, k, v; output; gate, up; down"
            files[-1].unlink()
            model, context = blocks(llama(1), sentences(3), SPECS["int4"])
            context.checkpoint, context.resume = tmp_path / f"{name}.checkpoint", True
            Gptq().run(model, context)
            found.append(context.plan.weights)
    for key, codes in found[0].items():
        for other in found[1:]:
            np.testing.assert_array_equal(codes.codes, other[key].codes)


PADDED = (
    head()
    + """g (float[batch,length,16] x, int64[batch,length] attention_mask) => (float[batch,length,8] y) {
    r = Relu (x)  y = MatMul (r, w) }"""
)


def test_padding_has_no_say() -> None:
    lengths, x = [5, 9, 3], correlated(27, 16).reshape(3, 9, 16)
    mask = np.array([[i < n for i in range(9)] for n in lengths])
    padded = np.where(mask[:, :, None], x, 50 * normal(3, 9, 16))
    batch = {"x": padded.astype(np.float32), "attention_mask": mask.astype(np.int64)}
    alone = [{"x": x[i : i + 1, :n], "attention_mask": np.ones((1, n), np.int64)} for i, n in enumerate(lengths)]
    codes = []
    for feeds, name in (([batch], "attention_mask"), (alone, None), ([batch], None)):
        model, context = blocks(model_of(PADDED, {"w": normal(16, 8)}), feeds, SPECS["int4"])
        Gptq(mask=name).run(model, context)
        [found] = context.plan.weights.values()
        codes.append(found.codes.astype(int))
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


TWICE = head() + "g (float[N,16] x) => (float[N,16] y) { a = MatMul (x, w)  r = Relu (a)  y = MatMul (r, w) }"
ONE = head() + "g (float[N,16] x) => (float[N,8] y) { y = MatMul (x, w) }"


def test_a_weight_of_two_layers_keeps_its_codes() -> None:
    model, context = blocks(model_of(TWICE, {"w": normal(16, 16)}), [{"x": normal(64, 16)}], SPECS["int4"])
    before = dict(context.plan.weights)
    Gptq().run(model, context)
    assert context.plan.weights == before
    [notice] = context.notices
    assert "another node reads the same weight" in notice


def test_a_head_keeps_the_codes_that_the_embedding_reads() -> None:
    model, context = blocks(model_of(ONE, {"w": normal(16, 8)}), [{"x": normal(64, 16)}], SPECS["int4"])
    [(name, unit)] = context.plan.units.items()
    context.plan.units["lookup"] = replace(unit, node="lookup", op_type="Gather", tied=name)
    before = dict(context.plan.weights)
    Gptq().run(model, context)
    assert context.plan.weights == before
    assert "another node reads the same weight" in context.notices[0]


def test_dependent_inputs_are_reported() -> None:
    x = normal(64, 2) @ normal(2, 16)
    model, context = blocks(model_of(ONE, {"w": normal(16, 8)}), [{"x": x.astype(np.float32)}], SPECS["int4"])
    Gptq(damping=1e-12).run(model, context)
    [notice] = context.notices
    assert "damping had to rise from 1e-12 to 1e-" in notice


def test_a_silent_input_keeps_its_nearest_codes() -> None:
    x = correlated(64, 16)
    x[:, 3] = 0
    model, context = blocks(model_of(ONE, {"w": normal(16, 8)}), [{"x": x}], SPECS["int4"])
    [before] = context.plan.weights.values()
    Gptq().run(model, context)
    [found] = context.plan.weights.values()
    np.testing.assert_array_equal(found.codes[3], before.codes[3])
    assert (found.codes != before.codes).any()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_golden(alpha: float) -> None:
    """Whose codes are chosen, on which grid. Which of them move is a matter of the machine's last digits."""
    feeds = images(8)
    _, context, before = solved(model_of(IMAGES, dict(IMAGE_WEIGHTS)), feeds, Gptq(alpha=alpha))
    grids = [f"{unit} {weight}: {q.params.spec}\n" for (weight, unit), q in before.weights.items()]
    touched = [
        f"{unit} {w}: chosen\n" for (w, unit), q in context.plan.weights.items() if q is not before.weights[w, unit]
    ]
    assert_golden("passes/gptq", f"# before\n{''.join(grids)}\n# after\n{''.join(touched)}")


@pytest.mark.parametrize(
    ("feeds", "options", "message"),
    [
        ([], {}, "no calibration samples"),
        ([{"x": np.full((4, 16), np.inf, np.float32)}], {}, "the input of 'MatMul_0' is not finite"),
        ([{"x": normal(4, 16)}], {"mask": "attention_mask"}, "no input 'attention_mask' to serve as mask"),
    ],
)
def test_refusals(feeds: list[Sample], options: dict[str, Any], message: str) -> None:
    model, context = blocks(model_of(ONE, {"w": normal(16, 8)}), [{"x": normal(4, 16)}], SPECS["int4"])
    context.calibration = Samples(feeds)
    with pytest.raises(DataError, match=message):
        Gptq(**options).run(model, context)


def test_pieces_of_outputs_have_the_codes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (1 << 24, 700):
        monkeypatch.setattr(gptq, "_PIECE", most)
        model, context = blocks(llama(1), sentences(3), SPECS["uint4"])
        Gptq().run(model, context)
        found.append({key: q.codes.astype(int) for key, q in context.plan.weights.items()})
    for key, codes in found[0].items():
        assert (codes != found[1][key]).mean() < 0.01, "a tie may fall the other way"
