from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import Field

from qcompile.compiler.passes import Pass, Phase, import_passes, registered_passes
from qcompile.compiler.recipe import Recipe, parse_recipe
from qcompile.errors import RecipeError
from qcompile.passes.prepare.upgrade_opset import UpgradeOpset

import_passes("qcompile.passes")


def recipe(steps: str, head: str = "name: mine\n") -> Recipe:
    return parse_recipe(f"{head}steps:\n{steps}", "mine.yaml")


def fault(steps: str, head: str = "name: mine\n") -> str:
    with pytest.raises(RecipeError) as error:
        recipe(steps, head).passes()
    return str(error.value)


def test_steps_become_passes_with_their_options() -> None:
    made = recipe("  - upgrade-opset: {minimum: 19}\n  - lift-constants\n  - unique-names:\n").passes()
    assert [p.name for p in made] == ["upgrade-opset", "lift-constants", "unique-names"]
    assert made[0] == UpgradeOpset(minimum=19)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            "  - unique-names\n  - lift-constatns\n",
            "step 2, pass 'lift-constatns': unknown; did you mean 'lift-constants'?",
        ),
        ("  - zzzz\n", "step 1, pass 'zzzz': unknown"),
        ("  - upgrade-opset: {minimun: 19}\n", "'minimun' is not an option; did you mean 'minimum'?"),
        ("  - unique-names: {depth: 1}\n", "'depth' is not an option; it has none"),
        (
            "  - upgrade-opset: {minimum: high}\n",
            "step 1, pass 'upgrade-opset': 'minimum': Input should be a valid integer",
        ),
        ("  - upgrade-opset: {minimum: 3}\n", "'minimum': Input should be greater than or equal to 13"),
        ("  - place-int8: {per-channel: 7}\n", "'per-channel': Input should be a valid boolean"),
        ("  - place-int8: {resolution: -1}\n", "'resolution': Input should be greater than or equal to 0"),
        (
            "  - calibrate\n  - unique-names\n",
            "step 2, pass 'unique-names': a prepare pass cannot follow the analyze pass",
        ),
        ("  - upgrade-opset: 19\n", "must be a mapping such as {option: value}, not 19"),
        ("  - {a: 1, b: 2}\n", "mine.yaml"),
        ("  - 7\n", "mine.yaml"),
    ],
)
def test_faults_name_the_step_and_what_to_write(steps: str, said: str) -> None:
    assert said in fault(steps)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [", "not valid YAML"),
        ("just words", "a recipe is a mapping"),
        ("steps: []", "'name': Field required"),
        ("name: x", "'steps': Field required"),
        ("name: x\nsteps: []\nextra: 1", "'extra' is not an option"),
        ("name: x\nsteps: []\ndescripton: 1", "did you mean 'description'?"),
    ],
)
def test_faults_of_the_file(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "mine.yaml")
    assert said in str(error.value)
    assert error.value.where == "mine.yaml"


def test_overrides_change_a_copy() -> None:
    before = recipe("  - upgrade-opset: {minimum: 19}\n")
    after = before.with_overrides(["upgrade-opset.minimum=21"])
    assert after.passes() == [UpgradeOpset(minimum=21)]
    assert before.passes() == [UpgradeOpset(minimum=19)]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("upgrade-opset.minimum", "is not of the form pass.option=value"),
        ("minimum=3", "is not of the form pass.option=value"),
        ("upgrade-opsets.minimum=19", "has no pass 'upgrade-opsets'; did you mean 'upgrade-opset'?"),
        ("upgrade-opset.minimum=[1", "not valid YAML"),
    ],
)
def test_faults_of_overrides(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe("  - upgrade-opset\n").with_overrides([override])
    assert said in str(error.value)


def test_patterns_need_no_quotes() -> None:
    """YAML 1.1 reads 2:4 as a number in base 60."""
    found = recipe("  - wanda: {pattern: 4:8, layers: [{role: mlp, pattern: 1:4}]}\n")
    assert found.steps[0].options == {"pattern": "4:8", "layers": [{"role": "mlp", "pattern": "1:4"}]}
    assert found.with_overrides(["wanda.pattern=2:4"]).steps[0].options["pattern"] == "2:4"


def test_options_are_written_with_hyphens_too() -> None:
    class WithLongOption(Pass):
        name: ClassVar[str] = "test-with-long-option"
        phase: ClassVar[Phase] = Phase.PREPARE
        long_option: int = Field(default=1)

    try:
        assert recipe("  - test-with-long-option: {long-option: 2}\n").passes() == [WithLongOption(long_option=2)]
        assert "did you mean 'long-option'?" in fault("  - test-with-long-option: {long-optoin: 2}\n")
    finally:
        del WithLongOption.name


def test_two_passes_of_one_name_are_an_error() -> None:
    class First(Pass):
        name: ClassVar[str] = "test-twice"
        phase: ClassVar[Phase] = Phase.PREPARE

    class Second(Pass):
        name: ClassVar[str] = "test-twice"
        phase: ClassVar[Phase] = Phase.PREPARE

    try:
        with pytest.raises(RecipeError, match="two passes are called 'test-twice'"):
            registered_passes()
    finally:
        del First.name, Second.name
    assert "test-twice" not in registered_passes()
