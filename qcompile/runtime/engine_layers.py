"""What the layers of a TensorRT engine compute on, as its inspector tells.

An engine that was built with detailed profiling verbosity describes each of its layers: kind, tensors with their
element types, kernel, and the ONNX nodes the layer stands for. There are two notations of one content. The inspector
gives JSON; the builder's log has lines (`Name: ..., LayerType: ..., Inputs: [...], ...`), which need no GPU to be read.

Sources: TensorRT's documentation, 'Engine Inspector' (JSON: `Format/Datatype`, `Weights`, `TacticName`) and 'Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x' (`Datatype` and `Constants` apart); the lines as TensorRT-RTX 1.7.1
writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.errors import DataError

CODES = ("int8", "fp8", "int4", "fp4")
"""Element types of quantized tensors."""

_TYPES = {
    "int8": "int8", "fp8": "fp8", "int4": "int4", "fp4": "fp4", "half": "float16", "fp16": "float16",
    "bfloat16": "bfloat16", "bf16": "bfloat16", "float": "float32", "fp32": "float32", "float32": "float32",
}  # fmt: skip
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\W*\[ONNX Layer: |\W*$)")
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)"
    r"TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: ?(?P<nodes>.*)$",
    re.MULTILINE,
)
_LINE_TYPE = re.compile(r"Datatype: (\w+)")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: as the builder calls it.
        kind: "gemm", "CaskConvolution", "kgen" (a generated kernel), "Reformat" and so on.
        inputs: element types of the tensors it reads, weights included; numpy's names, and CODES.
        outputs: element types of the tensors it writes.
        tactic: the kernel; empty, or a placeholder, where it is chosen when the engine is loaded.
        nodes: names of the ONNX nodes it stands for.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str
    nodes: tuple[str, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """Element types of the quantized tensors it reads."""
        return tuple(t for t in self.inputs if t in CODES)

    @property
    def sparse(self) -> bool:
        """Whether its kernel skips zeros of 2:4 weights: such kernels say so in their names."""
        return "sparse" in self.tactic.lower()


def from_json(text: str) -> list[EngineLayer]:
    """The layers that `get_engine_information(JSON)` lists.

    Raises:
        DataError: it is something else, or the engine was built with layer names alone.
    """
    try:
        layers = json.loads(text)["Layers"]
        if any(isinstance(layer, str) for layer in layers):
            raise DataError(
                "the engine tells the names of its layers alone", hint="build it with detailed profiling verbosity"
            )
        return [_layer(layer) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"this is no layer information of TensorRT: {error}") from None


def from_log(text: str) -> list[EngineLayer]:
    """The layers that the builder's log describes in lines."""
    return [
        EngineLayer(
            name=found["name"],
            kind=found["kind"],
            inputs=_line_types(f"{found['inputs']} {found['constants'] or ''}"),
            outputs=_line_types(found["outputs"]),
            tactic=found["tactic"],
            nodes=tuple(_NODE.findall(found["nodes"])),
        )
        for found in _LINE.finditer(text)
    ]


def _layer(given: Mapping[str, Any]) -> EngineLayer:
    weights = given.get("Weights") or {}
    return EngineLayer(
        name=given["Name"],
        kind=given.get("LayerType", ""),
        inputs=(
            *_types([*given.get("Inputs", []), *given.get("Constants", [])]),
            *([_type(weights["Type"])] if weights.get("Type") else []),
        ),
        outputs=tuple(_types(given.get("Outputs", []))),
        tactic=given.get("TacticName", ""),
        nodes=tuple(_NODE.findall(given.get("Metadata", ""))),
    )


def _types(tensors: list[Mapping[str, str]]) -> Iterator[str]:
    for tensor in tensors:
        yield _type(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _line_types(tensors: str) -> tuple[str, ...]:
    return tuple(_type(found) for found in _LINE_TYPE.findall(tensors))


def _type(said: str) -> str:
    """The element type in "Thirty-two wide channel vectorized row major Int8 format" or "Half"."""
    found = _TYPE.search(said)
    return _TYPES[found[1].lower()] if found else said.lower()
