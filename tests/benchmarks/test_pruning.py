"""The benchmark of pruned models: its forms are recipes that exist, each with its pass once."""

from __future__ import annotations

import pytest

from benchmarks.pruning import Form, forms, recipe_of

THINS = ("prune-channels", "prune-blocks", "low-rank")


@pytest.mark.parametrize("form", forms().values(), ids=lambda form: form.name)
def test_every_form_has_its_pass_in_its_place(form: Form) -> None:
    steps = recipe_of(form).steps
    names = [step.name for step in steps]
    thins = [step for step in steps if step.name in THINS]
    recipe_of(form).passes()
    assert [step.name for step in thins] == ([] if form.options is None else [form.prunes])
    for step in thins:
        assert (form.options or {}).items() <= step.options.items()
        assert names[names.index(step.name) + 1] == (
            "calibrate" if form.base == "int8-static" else "detour-slow-fusions"
        )
    if form.prunes == "low-rank":
        assert thins[0].options["layers"] == [{"role": "head", "keep-whole": True}]
