"""Residual branches that move their stream least go, and the layers behind make good for them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.printer import print_model
from qcompile.errors import DataError, RecipeError
from qcompile.passes.transform.prune_blocks import PruneBlocks
from tests.golden import assert_golden
from tests.passes.harness import NAMED, assert_close, context, model_of, outputs, run
from tests.passes.llama import WIDTH, llama
from tests.passes.samples import Samples

Floats = npt.NDArray[np.float32]


def sentences(count: int = 12, seed: int = 1) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 24, WIDTH)).astype(np.float32) for _ in range(count)]


def on_samples(*samples: Floats) -> CompileContext:
    on = context()
    on.calibration = Samples(*samples)
    return on


def scaled(model: ir.Model, weight: str, by: float) -> None:
    value = model.graph.initializers[weight]
    array = constant(value)
    assert array is not None
    value.const_value = ir.tensor(array * np.float32(by), name=weight)


def test_a_branch_that_adds_nothing_goes_first() -> None:
    model, x = llama(2), sentences()[0]
    scaled(model, "w_down0", 0)
    before = outputs(model, {"x": x})
    run(model, *NAMED, PruneBlocks(remove=0.05, refit=False), on=on_samples(x))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    names = set(model.graph.initializers)
    assert not {"w_up0", "w_gate0", "w_down0", "gammaf0"} & names
    assert {"w_o0", "w_up1", "w_o1"} <= names
    assert_close(before, outputs(model, {"x": x}), 0)


def test_layers_behind_make_good() -> None:
    start, new = llama(3), sentences(2, seed=7)
    scaled(start, "w_o1", 0.5)
    errors = []
    for refit in (False, True):
        model, on = start.clone(), on_samples(*sentences(24))
        run(model, *NAMED, PruneBlocks(remove=0.05, refit=refit), on=on)
        pairs = [(outputs(start, {"x": x})[0], outputs(model, {"x": x})[0]) for x in new]
        errors.append(sum(float(np.square(y - z).sum()) for y, z in pairs))
        assert any("1 of 6 residual branches are gone" in text for text in on.notices)
        assert any("refitting" in text for text in on.notices) is refit
    assert errors[1] < 0.95 * errors[0]


def test_more_goes_until_the_budget_is_met() -> None:
    for remove, left in ((0.2, 3), (0.6, 1)):
        model = llama(2)
        run(model, *NAMED, PruneBlocks(remove=remove), on=on_samples(*sentences(3)))
        assert sum(name.startswith(("w_o", "w_down")) for name in model.graph.initializers) <= left


def test_too_much_is_an_error() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[N, 8] x) => (float[N, 8] y) {
        a = MatMul (x, w1) b = MatMul (a, w2) h = Relu (a) f = MatMul (h, w2) s = Add (a, f) y = Mul (s, b) }"""
    rng = np.random.default_rng(0)
    model = model_of(text, {n: rng.standard_normal((8, 8)).astype(np.float32) for n in ("w1", "w2")})
    with pytest.raises(RecipeError, match="all residual branches together have 33%"):
        run(model, *NAMED, PruneBlocks(remove=0.5), on=on_samples(rng.standard_normal((4, 8)).astype(np.float32)))


def test_something_has_to_stay() -> None:
    with pytest.raises(RecipeError, match="the model would return what it is given"):
        run(llama(1), *NAMED, PruneBlocks(remove=0.9), on=on_samples(*sentences(2)))


def test_without_branches_nothing_happens() -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 3] x) => (float[N, 3] y) { y = MatMul (x, w) }'
    model, on = model_of(text, {"w": np.eye(3, dtype=np.float32)}), on_samples(np.ones((2, 3), np.float32))
    assert not run(model, *NAMED, PruneBlocks(), on=on)[-1].modified
    assert "no residual branch" in on.notices[-1]


def test_needs_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        run(llama(1), *NAMED, PruneBlocks(), on=context())


def test_golden() -> None:
    model = llama(1)
    scaled(model, "w_down0", 0)
    run(model, *NAMED)
    first = print_model(model)
    run(model, *NAMED, PruneBlocks(), on=on_samples(*sentences(2)))
    assert_golden("passes/prune-blocks", f"# before\n{first}\n# after\n{print_model(model, provenance=True)}")
