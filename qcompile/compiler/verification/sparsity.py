"""Zeros that were made stay zeros: each weight with a pattern N:M has it in what the artifact stores.

A pattern of zeros saves time only where a kernel leaves them out, so what runs without them is said too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.operators.definition import DOMAIN
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import sources
from qcompile.compiler.report import Proof, UnitRecord
from qcompile.compiler.stored_zeros import Mask, nonzeros
from qcompile.compiler.targets.table import Target
from qcompile.compiler.weight_pattern import Pattern, summed_axis, weight_pattern

_BUILDERS_OPTION = "trt_sparsity_enable"


def layer_patterns(model: ir.Model) -> dict[ir.Node, Pattern]:
    """The linear layers of a float model whose weight has a pattern."""
    found: dict[ir.Node, Pattern] = {}
    for node in nodes(model):
        axis = summed_axis(node)
        weight = constant(node.inputs[1]) if axis is not None else None
        pattern = weight_pattern(weight, axis) if weight is not None and axis is not None else None
        if pattern is not None:
            found[node] = pattern
    return found


def prove_sparsity(
    artifact: ir.Model,
    wanted: Mapping[ir.Node, Pattern],
    units: Mapping[str, Unit],
    target: Target,
    records: Sequence[UnitRecord] = (),
    kernels: str = "",
) -> Proof:
    """Count the layers of `artifact` that have the pattern of their counterpart.

    Args:
        wanted: layers of the float model with their patterns.
        records: how the runtime executes the units, where that was seen.
        kernels: how it executes operators of ours, on the machine that proves.
    """
    layers = _Layers(artifact)
    kept: Counter[Pattern] = Counter()
    lost: list[str] = []
    for node, pattern in wanted.items():
        mask = layers.stored(node, units.get(str(node.name)))
        if mask is None:
            lost.append(f"{node.name} ({pattern}; its weight is not found in the artifact)")
        elif pattern.holds(mask):
            kept[pattern] += 1
        else:
            lost.append(f"{node.name} ({pattern}; {np.count_nonzero(mask) / mask.size:.0%} of its weights are not 0)")
    counts = ", ".join(f"{count} {pattern}" for pattern, count in kept.most_common()) or "none"
    detail = f"{kept.total()} of {len(wanted)} weights with a pattern have it as they are stored: {counts}"
    if lost:
        detail += f"; lost: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}"
    return Proof(
        name="sparsity",
        passed=not lost,
        detail=f"{detail}; {_executed(artifact, len(wanted), target, records, kernels)}",
    )


def _executed(artifact: ir.Model, wanted: int, target: Target, records: Sequence[UnitRecord], kernels: str) -> str:
    """What leaves the zeros out."""
    without = sum(n.domain == DOMAIN and n.op_type.startswith("Linear24") for n in nodes(artifact))
    if without:
        on = f"{without} of {wanted} are Linear24 operators, whose kernels on {target.providers[0]} leave the zeros out"
        return f"{on}; here {kernels}" if kernels else on
    if any(_BUILDERS_OPTION in options for options in target.provider_options(artifact).values()):
        chosen = sum((record.kernel or "").startswith("sparse ") for record in records)
        seen = f"; the engine built here names one for {chosen} of {len(records)} units" if records else ""
        return f"TensorRT takes kernels without zeros where they are faster ({_BUILDERS_OPTION}){seen}"
    return f"on {target.name} they run as dense ones: no kernel leaves the zeros out"


class _Layers:
    """What the artifact has in the place of the layers of the float model."""

    def __init__(self, artifact: ir.Model) -> None:
        self.model = artifact
        self.by_name = {str(node.name): node for node in nodes(artifact)}
        self.by_source: dict[str, list[ir.Node]] = {}
        for node in nodes(artifact):
            for source in sources(node):
                self.by_source.setdefault(source, []).append(node)

    def stored(self, layer: ir.Node, unit: Unit | None) -> Mask | None:
        """Where the weight of `layer` is not 0, as its counterpart stores it."""
        weight = constant(layer.inputs[1])
        assert weight is not None
        for node in dict.fromkeys(self.candidates(layer, unit)):
            mask = nonzeros(node, self.model)
            if mask is not None and mask.size == weight.size:
                return mask
        return None

    def candidates(self, layer: ir.Node, unit: Unit | None) -> Iterable[ir.Node]:
        """The likeliest first: the node of that name, the one that its unit became, others that stand for it."""
        for name in (str(layer.name), unit.lowered if unit else ""):
            if name in self.by_name:
                yield self.by_name[name]
        for source in sources(layer) or [str(layer.name)]:
            yield from self.by_source.get(source, ())
