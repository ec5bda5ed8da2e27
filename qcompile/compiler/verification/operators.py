"""Units that are operators of the domain `qcompile`: the kernel, or the body that the runtime puts in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from qcompile.compiler.graph import nodes
from qcompile.compiler.operators import DOMAIN
from qcompile.compiler.operators.calls import is_linear
from qcompile.compiler.plan import Unit
from qcompile.compiler.report import Proof, UnitRecord
from qcompile.compiler.verification.optimized import OptimizedGraph, optimize
from qcompile.runtime.providers import CPU

_PRODUCTS = ("MatMulInteger", "MatMul", "FusedMatMul", "Gemm")
"""What computes in the bodies, the best first."""


def calls(model: ir.Model, units: Mapping[str, Unit]) -> dict[str, ir.Node]:
    """The calls of linear layers in the artifact `model`, by the name of their unit."""
    found = {str(node.name): node for node in nodes(model) if is_linear(node)}
    named = {name: found.get(unit.lowered) or found.get(name) for name, unit in units.items()}
    return {unit: call for unit, call in named.items() if call is not None}


def record(
    unit: Unit, call: ir.Node, graph: OptimizedGraph, by_name: Mapping[str, Sequence[onnx.NodeProto]], wanted: str
) -> UnitRecord:
    """What the provider `wanted` makes of one call: on a GPU only the kernel is worth its conversions, on the CPU the
    body is what there is."""
    name, kernel = str(call.name), _executed(call, by_name)
    took = next((graph.providers[str(n.name)] for n in by_name.get(name, ()) if n.name in graph.providers), wanted)
    if kernel is None:
        return _record(unit, None, False, "not found in the graph that the runtime executes")
    if took != wanted:
        return _record(unit, kernel, False, f"assigned to {took}")
    if kernel != call.op_type and (wanted != CPU or kernel != _PRODUCTS[0]):
        missing = f"its body runs in the place of {DOMAIN}::{call.op_type}, which has no kernel here"
        return _record(unit, kernel, False, missing)
    return _record(unit, kernel, True, "")


def prove_elsewhere(
    artifact: Path, units: Mapping[str, Unit], called: Mapping[str, ir.Node], wanted: str, missing: str
) -> tuple[Proof, list[UnitRecord]]:
    """What can be said of the operators where the provider `wanted` does not load: that the CPU provider runs them, or
    their bodies, which define what their kernels on `wanted` compute.

    Args:
        missing: why it does not load.

    Raises:
        ModelError: ONNX Runtime refuses the artifact.
    """
    graph = optimize(artifact, CPU)
    by_name, records = graph.by_origin(), []
    for name, unit in units.items():
        call = called.get(name)
        if call is None:
            records.append(_record(unit, None, None, "not examined on this machine"))
            continue
        kernel = _executed(call, by_name)
        on_device = f"on {wanted} it is {DOMAIN}::{call.op_type}"
        why = f"seen on the CPU provider; {on_device}" if kernel else "not found in the graph that the runtime executes"
        records.append(_record(unit, kernel, None if kernel else False, why))
    lost = [r.node for r in records if r.proved is False]
    if lost:
        detail = f"{len(lost)} of {len(called)} operators are not in the graph that the CPU provider runs: {lost[0]}"
        return Proof(name="dispatch", passed=False, detail=detail), records
    operators = Counter(call.op_type for call in called.values())
    listed = ", ".join(f"{n} {op_type}" for op_type, n in operators.most_common())
    seen = Counter(r.kernel for r in records if r.kernel)
    ran = ", ".join(f"{n} {kernel}" for kernel, n in seen.most_common())
    detail = f"{missing}; on the CPU provider the bodies run ({ran}); on {wanted} the operators do: {listed}"
    return Proof(name="dispatch", passed=None, detail=detail), records


def _executed(call: ir.Node, by_name: Mapping[str, Sequence[onnx.NodeProto]]) -> str | None:
    """The operator that computes the product of `call`: itself, or the one in its body."""
    found = [node.op_type for node in by_name.get(str(call.name), ())]
    return next((op_type for op_type in (call.op_type, *_PRODUCTS) if op_type in found), None)


def _record(unit: Unit, kernel: str | None, proved: bool | None, reason: str) -> UnitRecord:
    return UnitRecord(
        node=unit.node, op_type=unit.op_type, form=unit.form.value, kernel=kernel, proved=proved, reason=reason
    )
