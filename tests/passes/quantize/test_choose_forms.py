"""The form of each group of units: the noisy ones get a truer form, the others keep their speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.recipe import Recipe
from qcompile.compiler.targets import target_named
from qcompile.errors import DataError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.quantize.choose_forms import ChooseForms
from tests.passes.harness import model_of
from tests.passes.int8 import Array, Lowered, check, head, int8, normal

WIDTH = 48
LAYERS = f"""g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{
  a = MatMul (x, w)
  r = Relu (a)
  c = MatMul (r, v)
  y = Add (x, c)
}}"""
IMAGE = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  y = Conv (r, v)
}"""


def weights(outlier: float) -> dict[str, Array]:
    """Two linear layers; one channel between them is `outlier` times as large as the others, and matters no more."""
    w, v = normal(WIDTH, WIDTH) / 7, normal(WIDTH, WIDTH, seed=1) / 7
    w[:, 7] *= outlier
    v[7] /= outlier
    return {"w": w, "v": v}


def chosen(
    text: str, given: dict[str, Array], samples: list[dict[str, Array]], *options: str, target: str | None = None
) -> Lowered:
    searched = find_recipe("int8-accurate")
    steps = [
        s for s in searched.steps if s.name in {*(t.name for t in find_recipe("int8-static").steps), "choose-forms"}
    ]
    recipe, known = Recipe(name="searched", steps=tuple(steps)), target_named(target) if target else None
    return int8(head(21) + text, given, samples, *options, recipe=recipe, target=known)


def rows(count: int = 4) -> list[dict[str, Array]]:
    return [{"x": normal(64, WIDTH, seed=i)} for i in range(count)]


def test_a_goal_that_is_reached_changes_nothing() -> None:
    result = chosen(LAYERS, weights(1), rows(), "choose-forms.output-sqnr=10")
    assert result.forms == {"a": "INPUTS", "c": "INPUTS"}


def test_the_layer_behind_an_outlier_channel_moves_to_blocks_and_the_other_stays() -> None:
    result = chosen(LAYERS, weights(30), rows(), "place-int8.resolution=0", "choose-forms.output-sqnr=30")
    assert result.forms == {"a": "INPUTS", "c": "BLOCKS"}
    check(result, least=30)
    assert any("1 linear layers in blocks" in n for n in result.context.notices)


def test_on_cuda_a_layer_behind_an_outlier_row_is_quantized_row_by_row() -> None:
    samples = rows()
    for sample in samples:
        sample["x"][0] *= 100
    options = ("place-int8.resolution=0", "calibrate.method=min-max", "choose-forms.output-sqnr=45")
    result = chosen(LAYERS, weights(1), samples, *options, target="cuda")
    assert "DYNAMIC" in result.forms.values()
    assert any("row by row" in n for n in result.context.notices)
    called = [n.op_type for n in result.model.graph if n.domain == "qcompile"]
    assert "QuantizeRows" in called


def test_a_layer_that_placement_left_float_moves_to_blocks() -> None:
    given = weights(3000)
    static = int8(head(21) + LAYERS, given, rows(), "place-int8.resolution=2")
    assert "c" not in static.forms
    result = chosen(LAYERS, given, rows(), "place-int8.resolution=2", "choose-forms.output-sqnr=0")
    assert result.forms["c"] == "BLOCKS"
    assert "MatMulNBits" in result.kernels()


def test_keep_float_is_kept() -> None:
    result = chosen(LAYERS, weights(30), rows(), "place-int8.keep-float=['MatMul_2']", "choose-forms.output-sqnr=60")
    assert "c" not in result.forms


def test_layers_of_one_input_move_together() -> None:
    text = f"""g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y, float[N,{WIDTH}] z) {{
      a = MatMul (x, w)
      r = Relu (a)
      y = MatMul (r, v)
      z = MatMul (r, u)
    }}"""
    given = weights(30) | {"u": weights(30)["v"][:, ::-1].copy()}
    result = chosen(text, given, rows(), "place-int8.resolution=0", "choose-forms.output-sqnr=30")
    assert result.forms == {"a": "INPUTS", "y": "BLOCKS", "z": "BLOCKS"}


def test_a_convolution_that_costs_too_much_becomes_float() -> None:
    w, v = normal(4, 3, 3, 3), normal(4, 4, 1, 1)
    w[2] *= 100
    v[:, 2] /= 100
    given = {"w": w, "v": v}
    samples = [{"x": normal(2, 3, 8, 8, seed=i)} for i in range(4)]
    result = chosen(IMAGE, given, samples, "place-int8.resolution=0", "choose-forms.output-sqnr=34")
    assert result.sqnr("y") > 30
    assert any("operations float" in n for n in result.context.notices)
    assert any("choose-forms" in reason for reason in result.plan.kept_float.values())


def test_a_goal_out_of_reach_is_said() -> None:
    result = chosen(LAYERS, weights(30), rows(), "choose-forms.output-sqnr=200")
    assert any("out of reach" in n for n in result.context.notices)
    assert result.forms["c"] == "BLOCKS"


def test_the_same_choice_twice() -> None:
    one, two = (chosen(LAYERS, weights(30), rows(), "choose-forms.output-sqnr=30") for _ in range(2))
    assert one.data == two.data


def test_without_samples() -> None:
    model = model_of(head(21) + LAYERS, weights(1))
    with pytest.raises(DataError, match="samples"):
        ChooseForms().run(model, CompileContext(target_named("cpu"), Path("unused")))
