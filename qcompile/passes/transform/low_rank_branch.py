"""A float branch beside a linear layer, for what the few bits of its codes say worst.

    y = x W^T + b   ->   y = x (W - L R)^T + b + (x R^T) L^T        L: [N, r], R: [r, K]

The float function stays as it is: W - L R becomes the layer's weight, and the sum takes over the name of its result.
The two thin products and the sum stay float, whatever is placed later; `precision` may make them half.

L R is the matrix of rank r nearest to an aim, in a metric M of what the layer reads (compiler/low_rank.py):

    weights   M = 1                   every weight counts the same; needs no samples
    inputs    M = diag(H)             an input counts by its mean square
    outputs   M = H = X X^T, damped   ||(aim - L R) X||^2: what the layer gives counts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace, device
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.gram import Gram
from qcompile.compiler.graph import add_initializer, name_of
from qcompile.compiler.layer_grams import LayerInputs
from qcompile.compiler.layer_selection import by_reason
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.low_rank import Factors, decomposed
from qcompile.compiler.passes import Pass
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.reporting.wording import count
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.layer_walk import Wave, walk_layers
from qcompile.runtime.device import fetch

Array = Any  # numpy.ndarray or torch.Tensor
Floats = npt.NDArray[np.float32]
Metric = Literal["weights", "inputs", "outputs"]

_DAMPING = 0.01
"""Of H, as a share of the mean of its diagonal: a weight on inputs of which samples say nothing."""

_MOST = 0.5
"""A branch may have this share of the weights of its layer, at most."""


class BranchingPass(Pass):
    """Base of the passes that write branches: what they have in common."""

    rank: int = Field(default=32, ge=1, description="rank of the branch of each layer")
    metric: Metric = Field(
        default="weights",
        description="what the branch shall leave little of: of all weights alike (`weights`, without samples), of "
        "weights by the mean squares of their inputs (`inputs`), or of what the layer gives (`outputs`)",
    )
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )

    def branches(
        self,
        layers: Sequence[LinearLayer],
        aim: Callable[[LinearLayer], Floats],
        model: ir.Model,
        context: CompileContext,
    ) -> Iterator[tuple[LinearLayer, Factors, float]]:
        """For each layer its branch, and the share of the aim that it leaves, by its energy in the metric.

        When the loop goes on, layers behind read what the model then gives.

        Args:
            aim: what the branch of a layer shall come near to, [1, N, K].
        """
        if self.metric == "weights":
            for layer in layers:
                yield layer, *_read(self.solved(layer, aim(layer), None, context), layer)
            return
        inputs = LayerInputs.of(self.name, self.mask, model, context)
        for wave in walk_layers(layers, model, context, inputs, method=self):
            found = wave.once(partial(self.solved_wave, wave, aim, context))
            for layer in wave.layers:
                yield layer, *_read(found, layer)

    def solved_wave(
        self, wave: Wave, aim: Callable[[LinearLayer], Floats], context: CompileContext
    ) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for layer in wave.layers:
            found |= self.solved(layer, aim(layer), wave.gram(layer), context)
        return found

    def solved(self, layer: LinearLayer, aim: Floats, gram: Gram | None, context: CompileContext) -> dict[str, Array]:
        """The factors of one layer, and the share they leave."""
        known = decomposed(context.device.put(aim), _metric(self.metric, gram))
        factors, errors = known.truncated(self.rank), fetch(known.errors())
        left = errors[self.rank] / errors[0] if errors[0] > 0 else 0.0
        parts = {"left": fetch(factors.left), "right": fetch(factors.right), "share": np.asarray(left)}
        return {f"{layer.name} {part}": np.asarray(array, np.float32) for part, array in parts.items()}

    def tell(
        self,
        context: CompileContext,
        verb: str,
        aim: str,
        shares: Sequence[float],
        branches: Branches,
        left_out: Mapping[str, str],
    ) -> None:
        """Say what the branches are worth, and where there are none.

        Args:
            shares: of the aim, that each branch leaves.
        """
        if shares:
            context.notice(
                f"{self.name}: branches of rank {self.rank} beside {count(len(shares), 'layer')} {verb} "
                f"{1 - np.median(shares):.0%} of {aim} (median), for {branches.share:.1%} more weights"
            )
        if left_out:
            context.notice(f"{self.name}: no branch beside {by_reason(left_out)}")


def _read(found: Mapping[str, Array], layer: LinearLayer) -> tuple[Factors, float]:
    left, right, share = (found[f"{layer.name} {part}"] for part in ("left", "right", "share"))
    return Factors(left, right), float(share)


def _metric(kind: Metric, gram: Gram | None) -> Array | None:
    """M, or None for the unit matrix."""
    if gram is None:
        return None
    xp = array_namespace(gram.matrix)
    h = xp.astype(gram.matrix, xp.float64)
    eye = xp.eye(h.shape[1], dtype=h.dtype, device=device(h))
    added = _DAMPING * xp.mean(xp.linalg.diagonal(h), axis=1) + float(np.finfo(np.float32).tiny)
    damped = h + added[:, None, None] * eye
    return damped * eye if kind == "inputs" else damped


def layers_for_branches(
    model: ir.Model, units: Mapping[str, Unit], rank: int
) -> tuple[list[LinearLayer], dict[str, str]]:
    """The products that get a branch, and why others do not: name of the node -> reason.

    Those of `units` whose weights have the fewest bits: beside a head in 8 bits, the layers in 4.
    """
    found, left_out = linear_layers(model)
    left_out = {name: why for name, why in left_out.items() if name in units}
    specs = {name: unit.weight_spec for name, unit in units.items() if unit.op_type in ("MatMul", "Gemm")}
    bits = {name: spec.format.bits for name, spec in specs.items() if spec is not None}
    layers = [layer for layer in found if layer.name in bits]
    fewest = min((bits[layer.name] for layer in layers), default=0)
    for layer in layers:
        _, outputs, inputs = layer.shape
        if bits[layer.name] > fewest:
            left_out[layer.name] = f"its weight has {bits[layer.name]} bits, that of others {fewest}"
        elif rank * (outputs + inputs) > _MOST * outputs * inputs:
            left_out[layer.name] = f"of rank {rank} it would have more than half of the layer's weights"
    return [layer for layer in layers if layer.name not in left_out], left_out


class Branches:
    """Writes branches into one model.

    Attributes:
        products: the thin products of all branches.
    """

    def __init__(self, model: ir.Model, context: CompileContext, made_by: str) -> None:
        self.context, self.made_by, self.names = context, made_by, Names(model)
        self.products: set[ir.Node] = set()
        self._added = self._beside = 0

    def add(self, layer: LinearLayer, factors: Factors) -> None:
        """Give `layer` a branch; where it is planned, its unit ends in front of the sum."""
        node, graph = layer.node, layer.node.graph
        assert isinstance(graph, ir.Graph)
        left, right = (np.asarray(f[0], np.float32) for f in (factors.left, factors.right))
        layer.write(layer.matrix() - left @ right)
        last = _last(layer)
        result, shape = last.outputs[0], layer.input.shape
        inner = self.product(layer, layer.input, right.T, "inner")
        inner.outputs[0].shape = ir.Shape([*shape[:-1], factors.rank]) if shape is not None else None
        branch = self.product(layer, inner.outputs[0], left.T, "outer")
        total = self.node(layer, "Add", [result, branch.outputs[0]], "total")
        branch.outputs[0].shape = total.outputs[0].shape = result.shape
        graph.insert_before(node, [inner, branch])
        graph.insert_after(last, total)
        result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        total.replace_input_with(0, result)
        name = name_of(result)
        result.name, total.outputs[0].name = self.names.fresh(f"{name}_rest"), name
        self._move_end(layer, name, result.name)
        self.products |= {inner, branch}
        self._added += left.size + right.size
        self._beside += int(np.prod(layer.shape))

    @property
    def share(self) -> float:
        """Weights of all branches, as a share of those of their layers."""
        return self._added / max(self._beside, 1)

    def _move_end(self, layer: LinearLayer, old: str, new: str) -> None:
        units = self.context.plan.units
        if layer.name in units and units[layer.name].output == old:
            units[layer.name] = replace(units[layer.name], output=new)

    def product(self, layer: LinearLayer, x: ir.Value, matrix: Floats, part: str) -> ir.Node:
        """One thin product of a branch."""
        assert isinstance(layer.node.graph, ir.Graph)
        name = self.names.fresh(f"{layer.name}_low_rank_{part}_weight")
        weight = add_initializer(layer.node.graph, name, np.ascontiguousarray(matrix))
        return self.node(layer, "MatMul", [x, weight], part)

    def node(self, layer: LinearLayer, op_type: str, inputs: Sequence[ir.Value], part: str) -> ir.Node:
        """A node that stays float; its result has the same name."""
        made = ir.node(op_type, inputs, name=self.names.fresh(f"{layer.name}_low_rank_{part}"))
        made.outputs[0].name, made.outputs[0].type = made.name, layer.node.outputs[0].type
        stamp(made, self.made_by, [layer.node])
        self.context.plan.pin(str(made.name), "it belongs to a low-rank branch")
        return made


def _last(layer: LinearLayer) -> ir.Node:
    """The node that gives the result of `layer`: itself, or the Add of its bias."""
    own = layer.bias is None or layer.bias in layer.node.inputs
    return layer.node if own else next(iter(layer.node.outputs[0].uses())).node
