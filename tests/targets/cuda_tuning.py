"""As a program: what autotuning measures on CUDA by some recipes, as JSON. Arguments: a model, names of recipes.

Where it gives up, the reason stands in the place of the times.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Phase
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.targets import target_named
from qcompile.compiler.timings import read_timings
from qcompile.errors import TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.frontends.job import autotuned
from qcompile.passes.quantize.autotune import Autotune


def measured(model: Path, recipe: str, file: Path) -> dict[str, dict[str, float | None]] | str:
    """Times in ns by kind and form, None for what does not run."""
    passes = [p for p in autotuned(find_recipe(recipe)).passes() if p.phase is not Phase.ANALYZE]
    [tuning] = [p for p in passes if isinstance(p, Autotune)]
    context = CompileContext(target_named("cuda"), model, tuning=file)
    try:
        run_pipeline(passes, ir.load(model), context, last=tuning)
    except TargetError as error:
        return str(error)
    found = read_timings(file).kinds
    return {kind: {form: t and t.kernels for form, t in forms.items()} for kind, forms in found.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        json.dump({r: measured(Path(sys.argv[1]), r, Path(folder) / f"{r}.json") for r in sys.argv[2:]}, sys.stdout)
