"""What goes into a session and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NUMPY = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16", "tensor(bool)": "bool", "tensor(string)": "object",
} | {f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)}  # fmt: skip


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

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def dtype_named(type_name: str) -> str:
    """numpy's name of an element type, from ONNX Runtime's."""
    return _NUMPY.get(type_name, type_name)
