"""docs/recipes.md: the recipe format and the recipes that come with the package."""

from __future__ import annotations

from qcompile.frontends.builtin_recipes import find_recipe, recipe_names, recipe_text
from tools.reference.markdown import GENERATED, table
from tools.reference.options import options

_HEAD = """
# Recipes

A recipe is an ordered list of passes with their options, as a YAML file:

```yaml
name: my-int8
description: one line for `qcompile recipes`
steps:
  - fold-constants                             # a pass with its defaults
  - place-int8: {keep-float: ["/head/*"]}      # a pass with options
```

Nothing else may stand in it. Every mistake is an error that names the step and what to write instead. Steps keep the
order of the phases: prepare, analyze, transform, quantize, lower. [Passes](passes.md) explains each one.

Give `--recipe NAME` or `--recipe FILE.yaml`. To change one option of a packaged recipe, no file is needed:

```console
$ qcompile model.onnx --recipe int8-static --calib samples --set place-int8.activation-products=true
```

Editors that know JSON Schema check recipes as you write them: put this line first, with the path to
[recipe.schema.json](recipe.schema.json):

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""


def page() -> str:
    """The text of the page."""
    return GENERATED + _HEAD + "".join(_entry(name) for name in recipe_names())


def _entry(name: str) -> str:
    recipe = find_recipe(name)
    rows = [
        [f"[`{p.name}`](passes.md#{p.name})", p.phase.value, ", ".join(_setting(o) for o in _set(p)) or "-"]
        for p in recipe.passes()
    ]
    yaml, _ = recipe_text(name)
    return (
        f"\n## {name}\n\n{recipe.description[:1].upper()}{recipe.description[1:]}.\n\n"
        f"{table(['Pass', 'Phase', 'Options'], rows)}\n\n```yaml\n{yaml.strip()}\n```\n"
    )


def _set(step: object) -> list[tuple[str, object]]:
    from qcompile.compiler.passes import Pass

    assert isinstance(step, Pass)
    return [(o.name, getattr(step, o.name.replace("-", "_"))) for o in options(type(step))]


def _setting(option: tuple[str, object]) -> str:
    name, value = option
    shown = str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value
    return f"`{name}: {shown}`"
