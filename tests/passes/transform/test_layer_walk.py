"""What a walk over layers hands out is what the edited and the unedited model read there."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.context import Sample
from qcompile.compiler.graph import name_of
from qcompile.compiler.layer_grams import LayerInputs
from qcompile.compiler.layer_rows import every_row
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.passes import Pass, Phase
from qcompile.passes.transform.layer_walk import walk_layers
from tests.compiler.walks import ready, whole
from tests.passes.harness import NAMED, model_of
from tests.passes.llama import WIDTH, llama
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, images

Floats = npt.NDArray[np.float64]


class Halve(Pass):
    """Takes the smaller half of every weight away."""

    name: ClassVar[str] = "test-halve"
    phase: ClassVar[Phase] = Phase.TRANSFORM


def sentences(count: int = 3) -> list[Sample]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((1, 7 + i, WIDTH)).astype(np.float32)} for i in range(count)]


def read(model: ir.Model, layers: list[LinearLayer], feeds: list[Sample]) -> dict[str, npt.NDArray[np.float32]]:
    """The rows that each layer reads in the whole model."""
    probe = model.clone()
    values = {name_of(v): v for node in probe.graph for v in node.outputs} | {name_of(v): v for v in probe.graph.inputs}
    names = list(dict.fromkeys(name_of(layer.input) for layer in layers))
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(values[n] for n in names if not values[n].is_graph_input())
    found = [feed | given for feed, given in zip(feeds, whole(probe, feeds), strict=True)]
    return {
        layer.name: np.concatenate([every_row(layer.node, f[name_of(layer.input)]) for f in found], axis=1)
        for layer in layers
    }


@pytest.mark.parametrize("case", ["decoder", "images"])
@pytest.mark.parametrize("with_float", [False, True])
def test_grams_are_those_of_the_edited_prefix(case: str, with_float: bool) -> None:
    feeds = sentences() if case == "decoder" else images(3)
    model, context = ready(llama(2) if case == "decoder" else model_of(IMAGES, dict(IMAGE_WEIGHTS)), feeds, NAMED)
    context.following = ()
    layers, _ = linear_layers(model)
    exact = read(model, layers, feeds)
    grams = {}
    inputs = LayerInputs.of("test-halve", None, model, context)
    for wave in walk_layers(layers, model, context, inputs, method=Halve(), with_float=with_float):
        for layer in wave.layers:
            grams[layer.name] = wave.gram(layer)
            weight = layer.matrix()
            layer.write(np.where(np.abs(weight) < np.median(np.abs(weight)), 0, weight))
    assert list(grams) == [layer.name for layer in layers]
    edited = read(model, layers, feeds)
    for name, gram in grams.items():
        x, missed = (a.astype(np.float64) for a in (edited[name], exact[name] - edited[name]))
        assert gram.rows == x.shape[1]
        np.testing.assert_allclose(gram.matrix, x.swapaxes(1, 2) @ x, rtol=1e-3, atol=1e-3)
        assert (gram.drift is not None) == with_float
        for found, left in zip(gram.drift or (), (x, missed), strict=False):
            np.testing.assert_allclose(found, missed.swapaxes(1, 2) @ left, rtol=1e-2, atol=1e-2)
