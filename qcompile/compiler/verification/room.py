"""Whether models fit into memory, and how those that do not are run all the same.

ONNX Runtime packs a copy of every matrix for its kernels. A model for which there is no room runs without, from its
mapped files: the sums are the same, but slower, and kernels that quantize their input as they run (MatMulNBits)
compute in float instead.
"""

from __future__ import annotations

from pathlib import Path

from qcompile.compiler.artifact import model_bytes
from qcompile.runtime.mapped_weights import UNPACKED
from qcompile.runtime.memory import free_bytes

_COPIES = 2
"""Room for a packed copy, and for what else a comparison holds."""


def fit(*models: Path) -> bool:
    """Whether sessions of these models, open together, hold their packed weights in memory."""
    return _COPIES * sum(map(model_bytes, models)) <= free_bytes()


def ran_out(error: Exception) -> bool:
    """Whether an error, of Python or of ONNX Runtime, says that memory ran out."""
    said = str(error)
    return isinstance(error, MemoryError) or any(words in said for words in ("bad_alloc", "Failed to allocate memory"))


def entries_for(model: Path) -> dict[str, str]:
    """Session options with which `model` runs in the memory there is."""
    return {} if fit(model) else dict(UNPACKED)
