"""GPTQ: the codes of a layer together, so that the error of one weight makes good that of others.

    min over codes ||W X - Q X||^2 = tr (W - Q) H (W - Q)^T,   H = X X^T + damping,   one input after the other
    alpha > 0:     ||W X_float - Q X||^2, what the layers before have spoilt included (GPTAQ)

X is what the layer reads behind the quantized layers before it, over all rows of all samples; rounding with error
feedback (error_feedback.py) chooses the codes. The grids are the plan's: scales and zero points are not touched
(static groups), whatever their format and granularity. Inputs are taken in the order of the diagonal of H, largest
first. An input that is 0 in every sample keeps its nearest codes; so does a layer whose weight another reads too. A
weight that is 0 stays 0, and the others make good what it would have taken: a pruned layer keeps its pattern.

W: [groups, N, K], X: [groups, K, rows]; convolutions as products of what the kernel sees (layer_rows.py). Memory is
one H for each tensor that layers of one wave read, and the activations between two waves.
Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023;
Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", 2025.

Errors: DataError without samples, for a mask that is no input of the model, or for activations that are not finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace, is_numpy_array
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import NumericFormat
from qcompile.compiler.gram import Gram
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.layer_grams import LayerInputs, source_of
from qcompile.compiler.layer_rows import in_layout, is_product, matrix
from qcompile.compiler.params import Grid, grid_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedWeight, Unit
from qcompile.passes.quantize.error_feedback import Feedback, feedback, rounded
from qcompile.runtime.device import Device, fetch

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_PIECE = 1 << 24
"""Weights that are rounded at a time: outputs know nothing of each other."""


class Gptq(Pass):
    """Choose the codes of linear layers and convolutions for the outputs they give together."""

    name: ClassVar[str] = "gptq"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    damping: float = Field(
        default=0.01, gt=0, description="share of the mean of H's diagonal that is added to the diagonal"
    )
    act_order: bool = Field(
        default=True, description="inputs of large values first; without, in the order of the model"
    )
    alpha: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how much of the error of the layers before each layer shall make good (GPTAQ); twice the runs",
    )
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        inputs = LayerInputs.of(self.name, self.mask, model, context)
        layers = self.layers(model, context)
        walker = BlockWalker(
            model, context, inputs.samples, method=self, in_waves=layers.keys(), with_float=self.alpha > 0
        )
        for visit in walker:
            wave = [layers[n] for n in visit.block.nodes if n in layers]
            if wave:
                found = visit.once(partial(self.codes, wave, visit, inputs, context))
                for layer in wave:
                    layer.write(found[layer.unit.node], context)
        return False

    def layers(self, model: ir.Model, context: CompileContext) -> dict[str, _Layer]:
        """The layers to treat, by the name of their node."""
        plan = context.plan
        readers = Counter(weight for weight, _ in plan.weights)
        tied = {unit.tied for unit in plan.units.values()}
        found, shared = {}, []
        for node in nodes(model):
            unit = plan.units.get(str(node.name))
            if unit is None or unit.weight is None or unit.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            if readers[unit.weight] > 1 or unit.node in tied:
                shared.append(unit.node)
            elif is_product(node):
                found[unit.node] = _Layer(node, unit, plan.weights[unit.weight, unit.node])
        if shared:
            context.notice(
                f"{self.name}: {', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''} keep the codes they had: "
                "another node reads the same weight, and codes of their own would double it in the file"
            )
        return found

    def codes(
        self, wave: Sequence[_Layer], visit: Visit, inputs: LayerInputs, context: CompileContext
    ) -> dict[str, Array]:
        """The codes of the layers of one wave, by node."""
        found: dict[str, Array] = {}
        for source, gram in inputs.grams([layer.node for layer in wave], visit, with_float=self.alpha > 0).items():
            readers = [layer for layer in wave if source_of(layer.node) == source]
            back = self.back(gram, readers[0], context)
            for together in _alike(readers):
                found |= _solve(together, back, context.device)
        return found

    def back(self, gram: Gram, layer: _Layer, context: CompileContext) -> Feedback:
        difference = gram.drift[0] if gram.drift is not None else None
        found = feedback(gram.matrix, self.damping, act_order=self.act_order, difference=difference, alpha=self.alpha)
        if found.damping > self.damping:
            context.notice(
                f"{self.name}: the inputs of '{layer.node.name}' are so dependent that damping had to rise "
                f"from {self.damping:g} to {found.damping:g}"
            )
        return found


@dataclass(frozen=True)
class _Layer:
    """A layer with the grids of its weights."""

    node: ir.Node
    unit: Unit
    planned: QuantizedWeight

    @property
    def format(self) -> NumericFormat:
        """The format of its codes, those that its spec leaves unused taken out."""
        spec, fmt = self.planned.params.spec, self.planned.params.spec.format
        unused = spec.symmetric and not spec.full_range and fmt.is_integer and fmt.is_signed
        return replace(fmt, low=-fmt.high) if unused else fmt

    @property
    def outputs(self) -> int:
        """Outputs of each group."""
        return int(matrix(self.node, self.planned.codes).shape[1])

    def ordered(self, part: Array, order: Array, outputs: slice) -> Floats:
        """Some outputs of a tensor of the layout of the weight, as [groups, K, N] in the order of rounding."""
        inputs = matrix(self.node, part)[:, outputs].swapaxes(1, 2)
        return np.stack([p[o] for p, o in zip(inputs, order, strict=True)]).astype(np.float32, copy=False)

    def bits(self, codes: Sequence[Array], order: Array) -> Array:
        """Codes [groups, K, N] in that order, some outputs after the other, in the layout of the model, as plain
        integers of their bits."""
        joined = np.concatenate([c.astype(self.planned.codes.dtype) for c in codes], axis=2)
        inputs = np.stack([c[np.argsort(o)] for c, o in zip(joined, order, strict=True)])
        codes_in_layout: Array = in_layout(self.node, inputs.swapaxes(1, 2), self.planned.codes)
        return codes_in_layout.view(f"u{joined.itemsize}")

    def write(self, codes: Array, context: CompileContext) -> None:
        found = QuantizedWeight(self.planned.params, codes.view(self.planned.codes.dtype))
        context.plan.weights[str(self.unit.weight), self.unit.node] = found


def _alike(layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Layers whose codes are of one kind, which are rounded together."""
    found: dict[Any, list[_Layer]] = {}
    for layer in layers:
        params = layer.planned.params
        found.setdefault((layer.format, params.zero_point.any(), params.zero_point.dtype), []).append(layer)
    return list(found.values())


def _in_pieces(layers: Sequence[_Layer], most: int) -> Iterator[list[tuple[_Layer, slice]]]:
    """Outputs of the layers, at most so many at a time."""
    piece: list[tuple[_Layer, slice]] = []
    room = most
    for layer in layers:
        start, outputs = 0, layer.outputs
        while start < outputs:
            end = min(start + room, outputs)
            piece.append((layer, slice(start, end)))
            room -= end - start
            start = end
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def _solve(layers: Sequence[_Layer], back: Feedback, device: Device) -> dict[str, Array]:
    """The codes of layers of one source and one kind of codes, by node."""
    order = fetch(back.order)
    found: dict[str, list[Array]] = {layer.unit.node: [] for layer in layers}
    for piece in _in_pieces(layers, max(_PIECE // order.size, 1)):
        parts = [_parts(layer, order, outputs) for layer, outputs in piece]
        joined = [device.put(np.concatenate(part, axis=2)) for part in zip(*parts, strict=True)]
        codes = _rounded(layers[0], joined, back)
        ends = np.cumsum([weight.shape[2] for weight, *_ in parts])
        for (layer, _), own in zip(piece, np.split(fetch(codes), ends[:-1], axis=2), strict=True):
            found[layer.unit.node].append(own)
    return {layer.unit.node: layer.bits(found[layer.unit.node], order) for layer in layers}


def _parts(layer: _Layer, order: Array, outputs: slice) -> list[Floats]:
    """Weights, scales and, where there are any, zero points of some outputs in the order of rounding."""
    weight = constant(layer.node.inputs[1])
    assert weight is not None
    grid = grid_of(layer.planned.params, weight)
    parts = [weight, grid.scale] if grid.zero is None else [weight, grid.scale, grid.zero]
    return [layer.ordered(np.broadcast_to(part, weight.shape), order, outputs) for part in parts]


def _rounded(like: _Layer, parts: Sequence[Any], back: Feedback) -> Any:
    """Codes of weights, scales and zero points, [groups, K, N], of the kind of the layer's."""
    weight, scale, zero = (*parts, None)[:3]
    xp = np if is_numpy_array(weight) else array_namespace(weight)  # the plain functions take less time
    fractional = like.planned.params.zero_point.dtype == np.float32

    def nearest(column: int, values: Any) -> tuple[Any, Any]:
        own = Grid(like.format, scale[:, column], None if zero is None else zero[:, column], fractional)
        codes = own.codes(xp.where(kept[:, column], values, 0), xp)
        return codes, own.values(codes, xp)

    codes, kept = xp.empty_like(weight), weight != 0
    rounded(weight, back, nearest, codes)
    return codes
