"""Dead channels: nothing reads them any more, so that removing them must change nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from qcompile.compiler.graph import constant
from qcompile.compiler.serialization import initializer_bytes
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.channels.group import ChannelGroup
from qcompile.passes.transform.channels.remove import remove
from qcompile.passes.transform.channels.search import channel_groups
from tests.passes.harness import NAMED, Arrays, outputs, run


def prepared(model: ir.Model) -> ir.Model:
    run(model, *NAMED)
    return model


def whole(*shape: int, seed: int = 0) -> npt.NDArray[Any]:
    """Small whole numbers: sums of their products are exact in any order."""
    return np.random.default_rng([seed, *shape]).integers(-2, 3, shape).astype(np.float32)


def silence(model: ir.Model, group: ChannelGroup, channels: Collection[int]) -> None:
    """Zeros wherever a weight reads `channels`."""
    nodes = {str(n.name): n for n in model.graph}
    for part in group.readers:
        node = nodes[part.node]
        array = constant(node.inputs[part.index])
        assert array is not None
        array = array.copy()
        np.moveaxis(array, part.axis, 0)[np.isin(part.channels, list(channels))] = 0
        set_constant(node, part.index, array, Names(model))


def without_dead_channels(model: ir.Model, feeds: Arrays, tolerance: float = 0) -> ir.Model:
    """Every second channel of every group dies and goes, and `feeds` give the same; returns the smaller model."""
    dead = {group: set(range(0, group.size, 2)) for group in channel_groups(model)}
    for group, channels in dead.items():
        channels -= {min(needed) for needed in group.together if needed <= channels}
    for group, channels in dead.items():
        silence(model, group, channels)
    smaller = model.clone()
    remove(smaller, dead, "test")
    removed = sum(map(len, dead.values()))
    assert initializer_bytes(model) - initializer_bytes(smaller) >= 4 * removed
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    for expected, got in zip(outputs(model, feeds), outputs(smaller, feeds), strict=True):
        largest = float(np.abs(expected).max(initial=1e-3))
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)
    return smaller
