"""Key-value caches that a compiled model takes and returns as codes.

A generation loop needs nothing of this: it begins with empty arrays of the inputs' types and hands on what it gets.
Whoever has a cache of the float model, or wants to look into one, converts:

    int8       round(x / s)
    int4       round(x / s) + 8, two a byte, the even column in the low half
    fp8-e4m3   x / s as a number of the format

s: [1, heads, 1, columns], an initializer that the model's metadata names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qcompile.runtime import model_header

Array = np.ndarray[Any, Any]

METADATA = "qcompile.cache"
"""Key of the list of caches (JSON) in a compiled model's metadata."""


class Entry(NamedTuple):
    """One cache: the names of its input, its output and the initializer with its scales."""

    past: str
    present: str
    format: str
    scale: str


@dataclass(frozen=True)
class CacheCodes:
    """The quantized caches of one model; of a model without any it changes nothing.

    Attributes:
        entries: what the metadata says.
        scales: by input and by output.
    """

    entries: tuple[Entry, ...] = ()
    scales: Mapping[str, Array] = field(default_factory=dict)

    @staticmethod
    def of(model: Path) -> CacheCodes:
        """Those of a model file."""
        text = model_header.metadata(model, METADATA)
        if text is None:
            return CacheCodes()
        import onnx

        entries = tuple(Entry(**entry) for entry in json.loads(text))
        proto = onnx.load(model, load_external_data=False)
        wanted = {entry.scale for entry in entries}
        arrays = {
            t.name: onnx.numpy_helper.to_array(t, str(model.parent))
            for t in proto.graph.initializer
            if t.name in wanted
        }
        ports = {name: arrays[e.scale] for e in entries for name in (e.past, e.present)}
        return CacheCodes(entries, ports)

    def encode(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """A sample of the float model as this model takes it."""
        found = dict(sample)
        for entry in self.entries:
            array = found.get(entry.past)
            if array is not None and array.dtype.kind == "f":
                found[entry.past] = encoded(array, self.scales[entry.past], entry.format)
        return found

    def decode(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """What this model returned as the float model would have."""
        found = dict(outputs)
        for entry in self.entries:
            if entry.present in found:
                found[entry.present] = decoded(found[entry.present], self.scales[entry.present], entry.format)
        return found


def encoded(values: Array, scale: Array, form: str) -> Array:
    """Codes of keys or values [batch, heads, tokens, columns]."""
    ratio = values / scale
    if form == "fp8-e4m3":
        import ml_dtypes

        return np.clip(ratio, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    lowest, highest = (-7, 7) if form == "int4" else (-128, 127)
    codes = np.clip(np.rint(ratio), lowest, highest)
    if form == "int8":
        return codes.astype(np.int8)
    halves = (codes + 8).astype(np.uint8)
    return halves[..., 0::2] | halves[..., 1::2] << 4


def decoded(codes: Array, scale: Array, form: str) -> Array:
    """The reverse of `encoded`, float32."""
    if form == "int4":
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1).astype(np.float32) - 8
    return np.asarray(codes.astype(np.float32) * scale, np.float32)
