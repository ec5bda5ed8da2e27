"""The options of a pass in words."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.passes import Pass


@dataclass(frozen=True)
class Option:
    """One option as a recipe writes it."""

    name: str
    kind: str
    default: str
    meaning: str


def options(cls: type[Pass]) -> list[Option]:
    """The options of `cls`; meanings come from the field, or from the `Options:` part of the docstring."""
    schema = cls.model_json_schema()["properties"] if cls.model_fields else {}
    documented = _documented(cls)
    found = []
    for field, info in cls.model_fields.items():
        name = field.replace("_", "-")
        default = info.get_default(call_default_factory=True)
        found.append(
            Option(name, _kind(schema[field]), _written(default), info.description or documented.get(name, ""))
        )
    return found


def _documented(cls: type[Pass]) -> dict[str, str]:
    lines = re.findall(r"^ +([a-z-]+): (.+)$", inspect.getdoc(cls) or "", re.MULTILINE)
    return dict(lines)


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{v}`" for v in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return "list"
    bounds = [f"at least {schema['minimum']}" if "minimum" in schema else ""]
    bounds.append(f"at most {schema['maximum']}" if "maximum" in schema else "")
    return ", ".join(x for x in (str(schema.get("type", "value")), *bounds) if x)


def _written(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(str(v) for v in default) + "]"
    return str(default)
