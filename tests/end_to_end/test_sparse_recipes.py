"""Recipes that make zeros, from file to report: the pattern arrives, and its price is told apart from that of codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.compiler.graph import nodes
from qcompile.compiler.reporting.verdict import verdict
from qcompile.compiler.stored_zeros import nonzeros
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification import prove as proving
from qcompile.compiler.verification.prove import verify
from qcompile.compiler.weight_pattern import PATTERN_2_4
from qcompile.frontends.api import _keep_float
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal
from tests.passes.llama import WIDTH, llama

SAMPLES = [{"x": normal(1, 16, WIDTH, seed=i)} for i in range(6)]


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_TIMED", 0.0)


@pytest.mark.parametrize(
    ("recipe", "target", "weights"),
    [
        ("sparse24", "cuda", 5),
        ("sparse24-int8", "cpu", 7),
        ("sparse24-int8", "tensorrt", 7),
        ("sparsegpt-int4", "cpu", 7),
    ],
)
def test_zeros_arrive_and_their_price_is_told(
    recipe: str, target: str, weights: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ir.save(llama(layers=1), tmp_path / "m.onnx")
    made = qcompile.compile(tmp_path / "m.onnx", recipe, calibration=SAMPLES, target=target)
    proofs = {proof.name: proof for proof in made.report.proofs}
    assert proofs["sparsity"].passed, proofs["sparsity"].detail
    assert f"{weights} of {weights} weights with a pattern" in proofs["sparsity"].detail
    assert ("of qcompile's operators run by definition" in proofs["sparsity"].detail) == (target == "cuda")
    assert proofs["numerics"].passed, proofs["numerics"].detail
    sparsity = {"sparsegpt-int4": "sparsegpt"}.get(recipe, "wanda")
    assert f"against the float model as edited by {sparsity}" in proofs["numerics"].detail
    assert made.report.edit is not None
    assert made.report.edit.passes == [sparsity]
    assert 3 < made.report.edit.outputs[0].sqnr < 30
    assert made.report.outputs[0].sqnr > made.report.edit.outputs[0].sqnr
    again = verify(made.path, target_named(target), against=tmp_path / "m.onnx", samples=SAMPLES[:1])
    [numerics] = [proof for proof in again.proofs if proof.name == "numerics"]
    assert numerics.passed or f"{sparsity} changed the float model on purpose" in numerics.detail
    assert numerics.passed is not False
    assert "onnxruntime" not in capfd.readouterr().err  # its warnings
    artifact = ir.load(made.path)
    masks = [mask for node in nodes(artifact) if (mask := nonzeros(node, artifact)) is not None and mask.ndim == 2]
    assert len([mask for mask in masks if PATTERN_2_4.holds(mask) and np.any(mask)]) == weights


def test_a_recipe_without_codes_is_not_blamed_for_having_none(tmp_path: Path) -> None:
    ir.save(llama(layers=1), tmp_path / "m.onnx")
    report = qcompile.compile(tmp_path / "m.onnx", "sparse24", calibration=SAMPLES).report
    assert report.edit is not None
    assert report.kept_float == []
    assert not any("low precision" in alarm for alarm in verdict(report).alarms)


def test_a_model_without_a_layer_to_thin_is_not_blamed_either(tmp_path: Path) -> None:
    text = head() + "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { c = Conv <group = 4> (x, w) y = Relu (c) }"
    ir.save(model_of(text, {"w": normal(4, 1, 3, 3)}), tmp_path / "m.onnx")
    for recipe, said in (("sparse24", "wanda: no layer is thinned"), ("low-rank", "low-rank: no layer becomes")):
        samples = [{"x": normal(1, 4, 8, 8)}]
        report = qcompile.compile(tmp_path / "m.onnx", recipe, calibration=samples, overwrite=True).report
        assert report.edit is None
        assert any(n.startswith(said) for n in report.notices)
        assert not any("low precision" in alarm for alarm in verdict(report).alarms)


def test_layers_are_left_float_by_the_pass_that_places() -> None:
    """Passes that make zeros have an option `layers` too."""
    setting = _keep_float(find_recipe("sparse24-int8").passes(), ["a[0]"])
    assert setting == """--set 'place-int8.keep-float=["a[[]0]"]'"""
