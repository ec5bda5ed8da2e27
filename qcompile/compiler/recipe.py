"""Recipes: an ordered list of passes with their options, as data.

A recipe file is YAML:

    name: int8-static
    description: one line for `qcompile recipes`
    steps:
      - fold-constants                      # a pass with its defaults
      - place-int8: {activation-products: false}   # a pass with options

Nothing else is allowed in it; every error names the step and what to write instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from qcompile.compiler.passes import Pass, Phase, registered_passes
from qcompile.errors import RecipeError

_ORDER = list(Phase)


class Step(BaseModel):
    """One step of a recipe: a pass name and its options as written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if isinstance(data, dict) and len(data) == 1 and "name" not in data:
            [(name, options)] = data.items()
            if options is not None and not isinstance(options, dict):
                raise ValueError(
                    f"the options of '{name}' must be a mapping such as {{option: value}}, not {options!r}"
                )
            return {"name": name, "options": options or {}}
        return data


class Recipe(BaseModel):
    """A named list of steps. `passes()` turns it into validated passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    steps: tuple[Step, ...]

    def passes(self) -> list[Pass]:
        """The steps as passes, in order.

        Raises:
            RecipeError: unknown pass or option, wrong value, or phases out of order; names the step.
        """
        made = [_make(i, step) for i, step in enumerate(self.steps, 1)]
        for i, (a, b) in enumerate(pairwise(made), 2):
            observes_again = (a.phase, b.phase) == (Phase.TRANSFORM, Phase.ANALYZE)
            if _ORDER.index(b.phase) < _ORDER.index(a.phase) and not observes_again:
                raise RecipeError(
                    f"step {i}, pass '{b.name}': a {b.phase} pass cannot follow the {a.phase} pass '{a.name}'",
                    where=f"recipe '{self.name}'",
                    hint="phases run in the order " + ", ".join(_ORDER) + "; analyze may come back after transform",
                )
        return made

    def with_overrides(self, overrides: Sequence[str]) -> Recipe:
        """A copy with `pass.option=value` overrides applied (values are read as YAML).

        Raises:
            RecipeError: an override is malformed or names a pass that is not in the recipe.
        """
        steps = list(self.steps)
        for text in overrides:
            path, equals, value = text.partition("=")
            name, dot, option = path.strip().partition(".")
            if not (equals and dot and option):
                raise RecipeError(f"override '{text}' is not of the form pass.option=value")
            at = [i for i, s in enumerate(steps) if s.name == name]
            if not at:
                raise RecipeError(
                    f"override '{text}': recipe '{self.name}' has no pass '{name}'"
                    + _did_you_mean(name, [s.name for s in steps]),
                    hint=f"`qcompile recipes show {self.name}` lists its passes",
                )
            parsed = _from_yaml(value, f"override '{text}'")
            for i in at:
                steps[i] = Step(name=name, options=steps[i].options | {option: parsed})
        return self.model_copy(update={"steps": tuple(steps)})


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from YAML text; `where` names it in errors."""
    data = _from_yaml(text, where)
    if not isinstance(data, Mapping):
        raise RecipeError("a recipe is a mapping with name, description and steps", where=where)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(e, Recipe) for e in error.errors()), where=where) from None


def _from_yaml(text: str, where: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Leaves 2:4 as it is, which YAML 1.1 takes for a number in base 60."""

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            written = kind is yaml.ScalarNode and _TWO_NUMBERS.fullmatch(value or "")
            implicit = (False, implicit[1]) if written else implicit
            return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", where=where) from None


_TWO_NUMBERS = re.compile(r"\d+:\d+")


def _make(number: int, step: Step) -> Pass:
    known = registered_passes()
    if step.name not in known:
        raise RecipeError(
            f"step {number}, pass '{step.name}': unknown" + _did_you_mean(step.name, known),
            hint="the recipes reference in the documentation lists every pass",
        )
    cls = known[step.name]
    try:
        return cls.model_validate({k.replace("-", "_"): v for k, v in step.options.items()})
    except ValidationError as error:
        faults = "; ".join(_explain(e, cls) for e in error.errors())
        raise RecipeError(f"step {number}, pass '{step.name}': {faults}") from None


def _explain(error: Any, model: type[BaseModel]) -> str:
    field = ".".join(str(x) for x in error["loc"]).replace("_", "-")
    if error["type"] == "extra_forbidden":
        names = [n.replace("_", "-") for n in _holder(model, error["loc"]).model_fields]
        return f"'{field}' is not an option" + (
            _did_you_mean(str(error["loc"][-1]), names)
            or (f"; options: {', '.join(names)}" if names else "; it has none")
        )
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"'{field}': {said}" if field else said


def _holder(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The model that the last part of `path` is a field of: `model`, or one nested in its fields."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        inside = get_args(field.annotation) if field is not None else ()
        model = next((t for t in inside if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return model


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
