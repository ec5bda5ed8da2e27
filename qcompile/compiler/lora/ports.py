"""Adapters as inputs of a model: what these inputs are called, and what an adapter gives them.

    y = x W + (x A) B        A: [K, r], B: [r, N], zeros unless the run is given others; r is free

A convolution reads A: [r, C, h, w] and B: [N, r, 1, 1]; a table A: [V, r] and B: [r, D]. B holds the scale s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.lora.adapter import Adapter, Update
from qcompile.errors import DataError

DOWN, UP = ".lora_A", ".lora_B"
"""Behind the path of a module: its inputs."""

Array = npt.NDArray[Any]


def parameters(update: Update) -> tuple[Array, Array]:
    """A and B of one layer, as its inputs take them."""
    scaled = np.float32(update.scale) * update.up
    if update.table or update.down.ndim == 2:
        return np.ascontiguousarray(update.down.T), np.ascontiguousarray(scaled.T)
    return update.down, scaled


def check_low_rank(adapter: Adapter) -> None:
    """The adapter is nothing but sums of B A.

    Raises:
        DataError: it has magnitudes, or tensors trained whole.
    """
    hint = "merge it: qcompile lora merge"
    magnitudes = [module for module, update in adapter.updates.items() if update.magnitude is not None]
    if magnitudes:
        raise DataError(f"adapter '{adapter.name}' has magnitudes (DoRA), which cannot be inputs", hint=hint)
    if adapter.trained:
        whole = ", ".join(list(adapter.trained)[:3])
        raise DataError(f"adapter '{adapter.name}' holds whole tensors, which cannot be inputs: {whole}", hint=hint)


def modules_of(inputs: Sequence[str]) -> list[str]:
    """The modules that a model with these inputs takes adapters for."""
    return [
        name.removesuffix(DOWN) for name in inputs if name.endswith(DOWN) and name.removesuffix(DOWN) + UP in inputs
    ]


def arrays_for(adapter: Adapter, chosen: Mapping[str, str]) -> dict[str, Array]:
    """What `adapter` gives the inputs of a model.

    Args:
        chosen: path of a module of the adapter -> that of the model's module.
    """
    found: dict[str, Array] = {}
    for module, update in adapter.updates.items():
        found[chosen[module] + DOWN], found[chosen[module] + UP] = parameters(update)
    return found
