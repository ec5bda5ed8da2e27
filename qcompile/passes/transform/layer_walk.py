"""Weight edits layer by layer: each layer is solved on what the edited layers before it give.

    for wave in walk_layers(layers, model, context, inputs, method=self):
        grams = ...                                   # inside `once`: H of what each layer of the wave reads
        found = wave.once(lambda: {layer.name: new_weight(layer, wave.gram(layer)) for layer in wave.layers})
        for layer in wave.layers:
            layer.write(found[layer.name])

The layers of a wave do not read each other. What `once` returns is kept beside the output, so that an interrupted run
goes on; sums over samples are made only where its work asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.gram import Gram
from qcompile.compiler.graph import name_of
from qcompile.compiler.layer_grams import LayerInputs, source_of
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.passes import Pass

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True, eq=False)
class Wave:
    """Layers that do not read each other, and what they read."""

    layers: Sequence[LinearLayer]
    _visit: Visit
    _inputs: LayerInputs
    _with_float: bool

    def gram(self, layer: LinearLayer) -> Gram:
        """H of what `layer` reads behind the edited layers before it, on the device of the context."""
        return self._grams[source_of(layer.node)]

    @cached_property
    def _grams(self) -> dict[str, Gram]:
        return self._inputs.grams([layer.node for layer in self.layers], self._visit, self._with_float)

    def once(self, work: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """The arrays that `work` returns, or that it returned in a run that was interrupted."""
        return self._visit.once(work)


def walk_layers(
    layers: Sequence[LinearLayer],
    model: ir.Model,
    context: CompileContext,
    inputs: LayerInputs,
    *,
    method: Pass,
    with_float: bool = False,
) -> Iterator[Wave]:
    """The waves of `layers`, in order. When the loop goes on, samples are carried over the model as it then is.

    Args:
        with_float: the unedited model runs along, and `Gram.drift` says how its layers read otherwise.
    """
    by_name = {layer.name: layer for layer in layers}
    walker = BlockWalker(model, context, inputs.samples, method=method, in_waves=by_name.keys(), with_float=with_float)
    for visit in walker:
        entering = set(visit.block.inputs)
        wave = [by_name[n] for n in visit.block.nodes if n in by_name]
        wave = [layer for layer in wave if name_of(layer.input) in entering]
        if wave:
            yield Wave(wave, visit, inputs, with_float)
