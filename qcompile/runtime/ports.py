"""What goes into a session and comes out of it, and the names of its element types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TYPES = {
    "float": ("float32", 1),
    "double": ("float64", 11),
    "float16": ("float16", 10),
    "bfloat16": ("bfloat16", 16),
    "float8e4m3fn": ("float8_e4m3fn", 17),
    "float8e4m3fnuz": ("float8_e4m3fnuz", 18),
    "float8e5m2": ("float8_e5m2", 19),
    "float8e5m2fnuz": ("float8_e5m2fnuz", 20),
    "bool": ("bool", 9),
    "string": ("object", 8),
    "int8": ("int8", 3),
    "int16": ("int16", 5),
    "int32": ("int32", 6),
    "int64": ("int64", 7),
    "uint8": ("uint8", 2),
    "uint16": ("uint16", 4),
    "uint32": ("uint32", 12),
    "uint64": ("uint64", 13),
    "int4": ("int4", 22),
    "uint4": ("uint4", 21),
}
"""ONNX Runtime's name of a type -> the name in numpy, ml_dtypes and torch, and ONNX's number."""

_NAMES = {f"tensor({given})": name for given, (name, _) in _TYPES.items()}
_NUMBERS = dict(_TYPES.values())


@dataclass(frozen=True)
class Port:
    """One input or output: its name, element type (numpy's name) and shape (None for a free dimension)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, given: Any) -> Port:
        """The port that an `onnxruntime.NodeArg` describes."""
        shape = tuple(d if isinstance(d, int) else None for d in given.shape or ())
        return cls(given.name, dtype_named(given.type), shape)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def dtype_named(type_name: str) -> str:
    """numpy's name of an element type, from ONNX Runtime's."""
    return _NAMES.get(type_name, type_name)


def onnx_number(dtype: str) -> int:
    """ONNX's number of an element type, from numpy's name."""
    return _NUMBERS[dtype]
