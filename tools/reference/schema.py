"""docs/recipe.schema.json: the JSON Schema of recipe files, made of the options of every pass."""

from __future__ import annotations

import json
from typing import Any

from qcompile.compiler.passes import Pass
from tools.reference.registry import package_passes


def text() -> str:
    """The schema as JSON."""
    return json.dumps(schema(), indent=2) + "\n"


def schema() -> dict[str, Any]:
    """A recipe: a name, a description, and steps that are a pass or a pass with options."""
    known = package_passes()
    parts = {name: part for cls in known.values() for name, part in cls.model_json_schema().get("$defs", {}).items()}
    with_options = {name: {"anyOf": [_options(cls), {"type": "null"}]} for name, cls in known.items()}
    step = {
        "anyOf": [
            {"enum": list(known)},
            {
                "type": "object",
                "properties": with_options,
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qcompile recipe",
        "$defs": parts,
        "type": "object",
        "required": ["name", "steps"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "description": {"type": "string"},
            "steps": {"type": "array", "items": step},
        },
    }


def _options(cls: type[Pass]) -> dict[str, Any]:
    own = cls.model_json_schema()
    properties = {name.replace("_", "-"): s for name, s in own.get("properties", {}).items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}
