"""The recipes that come with qcompile: YAML files in `recipes/`, found by name; or a file of the user's own."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from qcompile.compiler.passes import import_passes
from qcompile.compiler.recipe import Recipe, parse_recipe
from qcompile.errors import RecipeError

_SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def find_recipe(given: str | Path | Recipe) -> Recipe:
    """The recipe called `given`, or in the file `given`.

    Raises:
        RecipeError: no such recipe or file, or the file is not a recipe.
    """
    if isinstance(given, Recipe):
        return given
    return parse_recipe(*recipe_text(given))


def recipe_text(given: str | Path) -> tuple[str, str]:
    """The YAML of a recipe as written, and where it lies."""
    import_passes("qcompile.passes")
    if str(given) in recipe_names():
        return (_folder() / f"{given}.yaml").read_text(encoding="utf-8"), f"recipe '{given}'"
    path = Path(given)
    if path.suffix in _SUFFIXES or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise RecipeError(f"the recipe cannot be read: {reason}", where=str(path)) from None
    close = difflib.get_close_matches(str(given), recipe_names(), n=1)
    raise RecipeError(
        f"unknown recipe '{given}'" + (f"; did you mean '{close[0]}'?" if close else ""),
        hint=f"recipes: {', '.join(recipe_names())}; or give a .yaml file",
    )


def _folder() -> resources.abc.Traversable:
    return resources.files("qcompile.frontends") / "recipes"
