"""The generated pages are those of the program, and the exported schema accepts what the program accepts."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from qcompile.frontends.builtin_recipes import recipe_names, recipe_text
from tools.reference import DOCS, pages
from tools.reference.registry import package_passes
from tools.reference.schema import schema


@pytest.mark.parametrize("page", ["passes.md", "recipes.md", "targets.md", "recipe.schema.json"])
def test_page_is_current(page: str) -> None:
    path = DOCS / page
    assert path.read_text(encoding="utf-8") == pages()[path], "run `make docs` and commit the page"


def test_every_pass_has_its_line() -> None:
    text = (DOCS / "passes.md").read_text(encoding="utf-8")
    assert [name for name in package_passes() if f"\n### {name}\n" not in text] == []


@pytest.mark.parametrize("name", recipe_names())
def test_schema_accepts_packaged_recipes(name: str) -> None:
    jsonschema.validate(yaml.safe_load(recipe_text(name)[0]), schema())


@pytest.mark.parametrize(
    "steps", [["smooth-qant"], [{"place-int8": {"resolutoin": 1}}], [{"calibrate": {"method": "entrpy"}}], [3]]
)
def test_schema_refuses_mistakes(steps: list[object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "steps": steps}, schema())


def test_the_site_lists_every_page() -> None:
    listed = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [str(p.relative_to(DOCS)) for p in sorted(DOCS.rglob("*.md")) if str(p.relative_to(DOCS)) not in listed]
    assert missing == []
