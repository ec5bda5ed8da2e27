"""The options of a pass in words."""

from __future__ import annotations

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
    """The options of `cls`; their meanings are the descriptions of the fields."""
    schema = cls.model_json_schema()["properties"] if cls.model_fields else {}
    found = []
    for field, info in cls.model_fields.items():
        name = field.replace("_", "-")
        default = info.get_default(call_default_factory=True)
        found.append(Option(name, _kind(schema[field]), _written(default), info.description or ""))
    return found


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
