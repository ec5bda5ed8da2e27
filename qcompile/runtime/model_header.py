"""The top-level fields of an ONNX file, read without parsing the graph.

A ModelProto is a sequence of (tag, value) pairs; the graph is one length-delimited field that is
skipped by seeking. So the manifest of a large model is found in microseconds, and a truncated file
is told from one that is no protobuf at all.

Source: the protobuf wire format (tag = field << 3 | type) and onnx.proto3 for the field numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "qcompile.manifest"
"""Key of the manifest (JSON) in a compiled model's metadata."""

GRAPH = 7
METADATA = 14
FUNCTIONS = 25
_VARINT, _BYTES = 0, 2
_FIELDS = {
    1: _VARINT,  # ir_version
    2: _BYTES,  # producer_name
    3: _BYTES,  # producer_version
    4: _BYTES,  # domain
    5: _VARINT,  # model_version
    6: _BYTES,  # doc_string
    GRAPH: _BYTES,
    8: _BYTES,  # opset_import
    METADATA: _BYTES,
    20: _BYTES,  # training_info
    FUNCTIONS: _BYTES,
    26: _BYTES,  # configuration
}


class NotAModel(ValueError):
    """The bytes are not the top level of a ModelProto."""


class Truncated(ValueError):
    """The file ends inside a field; `missing` bytes are not there."""

    def __init__(self, missing: int) -> None:
        self.missing = missing
        super().__init__(f"{missing} bytes are missing")


@dataclass(frozen=True)
class Field:
    """One top-level field: its number, and where its bytes lie (a varint has size 0)."""

    number: int
    start: int
    size: int


def fields(file: BinaryIO) -> Iterator[Field]:
    """The top-level fields of the open file, in order; values are skipped.

    Raises:
        NotAModel: a tag that a ModelProto does not have.
        Truncated: the last field runs past the end of the file.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    while file.tell() < end:
        number, kind = divmod(_varint(file), 8)
        if _FIELDS.get(number) != kind:
            raise NotAModel(f"field {number} of wire type {kind}")
        if kind == _VARINT:
            _varint(file)
            yield Field(number, file.tell(), 0)
            continue
        size = _varint(file)
        start = file.tell()
        if start + size > end:
            raise Truncated(start + size - end)
        yield Field(number, start, size)
        file.seek(start + size)


def manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a model that qcompile made, None for any other file."""
    try:
        found = json.loads(metadata(path, MANIFEST) or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def metadata(path: Path, wanted: str) -> str | None:
    """One entry of a model's metadata; None where it has none, or is no model."""
    try:
        with path.open("rb") as file:
            for field in fields(file):
                if field.number == METADATA:
                    file.seek(field.start)
                    key, value = _entry(file.read(field.size))
                    if key == wanted:
                        return value
    except (NotAModel, Truncated, OSError, ValueError):
        return None
    return None


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            raise Truncated(1)
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise NotAModel("a number of more than 64 bits")


def _entry(data: bytes) -> tuple[str, str]:
    """A StringStringEntryProto: key (1) and value (2)."""
    texts, at = {1: "", 2: ""}, 0
    while at < len(data):
        number, at = data[at] >> 3, at + 1
        size = shift = 0
        while True:
            size |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        texts[number], at = data[at : at + size].decode(), at + size
    return texts[1], texts[2]
