"""Every form in which a decoder has fewer weights, and how its file is made.

- 2:4 by magnitude, Wanda and SparseGPT as published, without further refitting; refitted, as our passes do it unless
  told otherwise; and in static int8 on top.
- llm-compressor's Wanda and SparseGPT, in an environment of its own, on the same windows of the same text.
- Filters, neurons and heads cut out (prune-channels) or whole residual branches (prune-blocks).
- Truncated SVD by the weights alone, ASVD and SVD-LLM, with 10, 20 and 30 % fewer weights in the layers: without
  refitting, and refitted.
- 4-bit codes with zeros (SparseGPT), beside a float branch (SVDQuant) or one in 8 bits for what they miss, and without
  either.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.language_forms import Form, compiled_form, float_form, peer_form, text
from tests.zoo.model import Sample
from tests.zoo.smollm2 import prompt

if TYPE_CHECKING:
    from qcompile.compiler.recipe import Recipe

_PASSES = {"magnitude": "sparsify-magnitude", "Wanda": "wanda", "SparseGPT": "sparsegpt"}
OURS = tuple(f"{method} 2:4" for method in _PASSES)
_PRESETS = {"llm-compressor Wanda 2:4": "wanda-2:4", "llm-compressor SparseGPT 2:4": "sparsegpt-2:4"}
THEIRS = tuple(_PRESETS)
_METRICS = {"plain": "plain", "ASVD": "asvd", "SVD-LLM": "svd-llm"}
_SHARES = (10, 20, 30)
_PRUNED = (10, 20)
_WHOLE_HEAD = "low-rank.layers=[{role: head, keep-whole: true}]"
"""As published; zeros leave it out without being told."""

_FOUR_BITS = {"int4-rtn": None, "int4-gptq": text, "sparsegpt-int4": text, "svdquant-int4": text}
"""Recipes, and the samples they need."""

_LAST_CODES = {"int4-rtn": "round-to-nearest", "int4-gptq": "gptq"}
"""Recipes, and the step behind which a branch of rank 32 in 8 bits makes good what the codes miss."""


@cache
def forms() -> dict[str, Form]:
    """All of them, in the order of the table."""
    found = [float_form()]
    for method, name in _PASSES.items():
        found.append(compiled_form(f"{method} 2:4", "2:4", partial(as_published, name), windows))
        found.append(compiled_form(f"{method} 2:4, refitted", "2:4", partial(_thinned, "sparse24", name)))
    found += [peer_form(name, preset) for name, preset in _PRESETS.items()]
    found.append(compiled_form("int8-static", "int8", partial(_recipe, "int8-static")))
    for method, name in _PASSES.items():
        found.append(compiled_form(f"{method} 2:4, int8", "int8", partial(_thinned, "sparse24-int8", name)))
    for share in _SHARES:
        for title, metric in _METRICS.items():
            options = (f"low-rank.keep={1 - share / 100}", f"low-rank.method={metric}", _WHOLE_HEAD)
            for more, refit in (("", "false"), (", refitted", "true")):
                recipe = partial(_recipe, "low-rank", *options, f"low-rank.refit={refit}")
                found.append(compiled_form(f"{share} % less, {title}{more}", "low rank", recipe))
    for share in _PRUNED:
        for title, name in (("channels", "prune-channels"), ("blocks", "prune-blocks")):
            recipe = partial(_pruned, name, share / 100)
            found.append(compiled_form(f"{share} % fewer operations, {title}", "pruned", recipe))
    for name, samples in _FOUR_BITS.items():
        found.append(compiled_form(name, "4 bits", partial(_recipe, name), samples))
    for name, last in _LAST_CODES.items():
        found.append(compiled_form(f"{name}, compensated", "4 bits", partial(_compensated, name, last)))
    return {form.name: form for form in found}


def windows(data: Path) -> list[Sample]:
    """Samples that activations are the same on as llm-compressor's: all tokens of each window at once."""
    return [prompt(window[None]) for window in np.load(data / "windows.npy")]


def as_published(method: str) -> Recipe:
    """Zeros without refitting, in layers that keep their names: nothing is merged."""
    recipe = _thinned("sparse24", method, refit=False)
    steps = tuple(step for step in recipe.steps if step.name != "merge-linear")
    return recipe.model_copy(update={"steps": steps})


def _thinned(recipe: str, method: str, **options: Any) -> Recipe:
    """A recipe with Wanda in it, with another method in its place."""
    from qcompile.compiler.recipe import Step

    found = _recipe(recipe)
    steps = [Step(name=method, options=options) if step.name == "wanda" else step for step in found.steps]
    return found.model_copy(update={"steps": tuple(steps)})


def _pruned(method: str, share: float) -> Recipe:
    from qcompile.compiler.recipe import Step

    found, step = _recipe("prune-channels"), Step(name=method, options={"remove": share})
    steps = tuple(step if own.name == "prune-channels" else own for own in found.steps)
    return found.model_copy(update={"steps": steps})


def _compensated(recipe: str, behind: str) -> Recipe:
    from qcompile.compiler.recipe import Step

    found, more = _recipe(recipe), Step(name="compensate-rank", options={"rank": 32, "branch": "int8"})
    steps = [step for own in found.steps for step in ((own, more) if own.name == behind else (own,))]
    return found.model_copy(update={"steps": tuple(steps)})


def _recipe(name: str, *overrides: str) -> Recipe:
    from qcompile.frontends.builtin_recipes import find_recipe

    return find_recipe(name).with_overrides(overrides)
