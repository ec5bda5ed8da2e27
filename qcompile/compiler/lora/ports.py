"""Adapters as inputs of a model: what these inputs are called, and what an adapter gives them.

    y = x W + (x A) B        A: [K, r], B: [r, N], zeros unless the run is given others; r is free

A convolution reads A: [r, C, h, w] and B: [N, r, 1, 1]; a table A: [V, r] and B: [r, D]. B holds the scale s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.lora.adapter import Adapter, Update
from qcompile.compiler.lora.names import NAMES_DIFFER
from qcompile.compiler.lora.places import NOTHING, in_common, listed, parts
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


def values_for(adapter: Adapter, inputs: Sequence[ir.Value]) -> dict[str, Array]:
    """What `adapter` gives a model with these inputs, in their types; layers it has no module for are left out.

    Raises:
        DataError: which of its modules the model takes no adapter for, or takes one of another shape.
    """
    ports = {str(value.name): value for value in inputs}
    found: dict[str, Array] = {}
    for module, layer in _chosen(adapter, modules_of(list(ports))).items():
        for name, array in zip((layer + DOWN, layer + UP), parameters(adapter.updates[module]), strict=True):
            port = ports[name]
            assert port.shape is not None
            assert port.dtype is not None
            sizes = list(port.shape)
            fits = len(sizes) == array.ndim and all(
                not isinstance(size, int) or size == got for size, got in zip(sizes, array.shape, strict=True)
            )
            if not fits:
                raise DataError(
                    f"'{name}' of adapter '{adapter.name}' is {list(array.shape)}, the model wants {port.shape}"
                )
            found[name] = array.astype(port.dtype.numpy())
    return found


def _chosen(adapter: Adapter, layers: Sequence[str]) -> dict[str, str]:
    """The layer of each module: the one whose path has most in common with the module's."""
    chosen: dict[str, str] = {}
    for module in adapter.updates:
        common = {layer: in_common(parts(module), parts(layer)) for layer in layers}
        best = [layer for layer in layers if common[layer] == max(common.values()) > NOTHING]
        if len(best) == 1 and best[0] not in chosen.values():
            chosen[module] = best[0]
    if missing := [module for module in adapter.updates if module not in chosen]:
        raise DataError(
            f"the model takes no adapter for {len(missing)} of {len(adapter.updates)} modules of '{adapter.name}': "
            f"{listed(missing)}",
            hint=f"export this adapter with the float model: qcompile lora export MODEL ADAPTER...; {NAMES_DIFFER}",
        )
    return chosen
