"""The pass contract: a frozen, validated bundle of options with a `run`.

A pass is one technique in one file. Its fields are its options in a recipe; its class attributes
say when it may run and what it promises. It keeps no state between runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

from qcompile.compiler.statistics import Statistic
from qcompile.errors import RecipeError

if TYPE_CHECKING:
    from qcompile.compiler.context import CompileContext


class Phase(StrEnum):
    """The phases, in the order a recipe must keep."""

    PREPARE = "prepare"
    ANALYZE = "analyze"
    TRANSFORM = "transform"
    QUANTIZE = "quantize"
    LOWER = "lower"


class Fact(StrEnum):
    """What passes establish about the model, and may destroy."""

    UNIQUE_NAMES = "unique names"
    SAMPLES = "samples"
    SHAPES = "shapes"
    STATISTICS = "statistics"
    PLACEMENT = "placement"
    CODES = "codes"
    LOWERED = "lowered"


@dataclass(frozen=True)
class StatisticRequest:
    """A pass's wish that calibration observes `statistic` on tensor `value`."""

    value: str
    statistic: Statistic


class Pass(BaseModel):
    """Base of every pass.

    Class attributes:
        name: kebab-case name in recipes, unique.
        phase: where in a recipe it may stand.
        requires, provides, invalidates: facts about the model.
        float_equivalent: the pass leaves the float function unchanged (to 1e-5); the pipeline checks it.
        changes_function: the pass changes the float function on purpose, as pruning does. What it leaves is the
            float model that the rest of the recipe has to keep, and the proofs say what the change cost.
        measures: the pass runs copies of the model to decide or to correct; it is left out
            when such a copy is made (compiler/simulation.py).
        needs_samples: it cannot run without samples, which is said before the work begins.
        changes_interface: the pass changes the types of the model's inputs and outputs; left out of such
            copies as well, which are fed what the float model is fed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    phase: ClassVar[Phase]
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    float_equivalent: ClassVar[bool] = False
    changes_function: ClassVar[bool] = False
    measures: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False
    changes_interface: ClassVar[bool] = False

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        """Statistics the pass needs; pooled with those of its neighbours into one calibration run."""
        return ()

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        """Change `model` in place; True if anything changed. Errors are QCompileErrors."""
        raise NotImplementedError


def registered_passes() -> dict[str, type[Pass]]:
    """Every pass that has been imported, by name."""
    found: dict[str, type[Pass]] = {}
    waiting = list(Pass.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "name" in cls.__dict__:
            if cls.name in found and found[cls.name] is not cls:
                raise RecipeError(f"two passes are called '{cls.name}'")
            found[cls.name] = cls
    return dict(sorted(found.items()))


def import_passes(package: str) -> None:
    """Import every module below `package`, so that the passes in them are registered."""
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        importlib.import_module(module.name)
