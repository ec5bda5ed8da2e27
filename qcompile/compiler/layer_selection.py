"""Entries of a recipe that say what is different in some layers, which they select by name or by role.

Entries apply in order, the last that selects a layer having the last word.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field, model_validator

from qcompile.compiler.graph import nodes
from qcompile.compiler.provenance import sources
from qcompile.compiler.roles import Role
from qcompile.errors import RecipeError


class LayerSelection(BaseModel):
    """The layers of a name or a role; what is different in them is said by the fields of derived classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    name: str | None = Field(default=None, description="name of their nodes, with * and ?")
    role: Role | None = Field(default=None, description="what they are for")

    @model_validator(mode="after")
    def _selects(self) -> LayerSelection:
        if self.name is None and self.role is None:
            raise ValueError("say which layers, by name, by role, or by both")
        return self

    def __str__(self) -> str:
        said = (self.name and f"name '{self.name}'", self.role and f"role '{self.role}'")
        return " and ".join(filter(None, said))

    def selects(self, node: ir.Node, role: Role | None) -> bool:
        named = self.name is None or bool(fnmatch.filter([str(node.name), *sources(node)], self.name))
        return named and self.role in (None, role)


def by_reason(reasons: Mapping[str, str]) -> str:
    """'a, b: too small; c: kept': names of layers under what is said of them, the first few of each."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return "; ".join(f"{_some(names)}: {reason}" for reason, names in layers.items())


_NAMED = 3


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def idle_roles(model: ir.Model, entries: Iterable[LayerSelection], roles: dict[str, Role], asked_by: str) -> list[Role]:
    """Roles under `layers` that no layer of this model has.

    Raises:
        RecipeError: a name that matches nothing: a recipe holds for many models, a name for one.
    """
    found = list(nodes(model))
    idle = []
    for i, entry in enumerate(entries):
        if any(entry.selects(node, roles.get(str(node.name))) for node in found):
            continue
        if entry.name is not None:
            raise RecipeError(
                f"layers[{i}]: no layer has the {entry}",
                where=asked_by,
                hint="`qcompile inspect MODEL` lists the names of its nodes",
            )
        assert entry.role is not None
        idle.append(entry.role)
    return idle
