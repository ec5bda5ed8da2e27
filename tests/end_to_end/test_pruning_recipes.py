"""Pruning from file to report: tensors get smaller, in float and in int8, and its price is told apart."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import qcompile
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.verification import prove as proving
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import normal
from tests.passes.llama import WIDTH, llama

SAMPLES = [{"x": normal(1, 24, WIDTH, seed=i)} for i in range(8)]
PRUNING = Step(name="prune-channels", options={"remove": 0.2})


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_TIMED", 0.0)


@pytest.mark.parametrize("base", ["prune-channels", "int8-static"])
def test_less_is_left_and_its_price_is_told(base: str, tmp_path: Path) -> None:
    ir.save(llama(layers=1), tmp_path / "m.onnx")
    steps = find_recipe(base).steps
    at = next(i for i, step in enumerate(steps) if step.name in ("calibrate", "prune-channels"))
    behind = [step for step in steps[at:] if step.name != "prune-channels"]
    recipe = Recipe(name="pruned", steps=(*steps[:at], PRUNING, *behind))
    made = qcompile.compile(tmp_path / "m.onnx", recipe, calibration=SAMPLES)
    proofs = {proof.name: proof for proof in made.report.proofs}
    assert proofs["numerics"].passed, proofs["numerics"].detail
    assert made.report.edit is not None
    assert made.report.edit.passes == ["prune-channels"]
    assert made.report.edit.outputs[0].sqnr > 5
    hidden = {
        int(size)
        for value in ir.load(made.path).graph.initializers.values()
        if value.shape is not None and value.shape.rank() == 2
        for size in value.shape.numpy()
    }
    assert 48 not in hidden
    assert any("of the multiply-accumulates" in notice for notice in made.report.notices)
