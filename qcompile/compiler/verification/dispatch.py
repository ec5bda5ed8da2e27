"""Proof of dispatch: which planned operations the runtime really executes in low precision.

ONNX Runtime decides at load time whether a Q/DQ pattern becomes an integer kernel; when it does not, the
graph still runs, in float and with conversions on top. So the graph it made is read back and every unit
is looked up in it: by the name of its node, which fusions keep, then by the value it writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from qcompile.compiler.graph import nodes
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.provenance import sources
from qcompile.compiler.report import FloatRecord, Proof, UnitRecord
from qcompile.compiler.targets.table import Lowering, Target
from qcompile.compiler.verification import engine, operators
from qcompile.compiler.verification.expectations import INTEGER_OPERATORS, expected_units, rows_for
from qcompile.compiler.verification.optimized import MOVES, OptimizedGraph, optimize, original_name
from qcompile.errors import QCompileError, TargetError
from qcompile.runtime.engine_builder import why_no_builder
from qcompile.runtime.providers import TENSORRT, builder_of

_HEAVY = {
    "Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "RNN",
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "Einsum", "DynamicQuantizeLSTM",
}  # fmt: skip


@dataclass
class Dispatch:
    """What the runtime made of the plan."""

    proof: Proof
    units: list[UnitRecord] = field(default_factory=list)
    kept_float: list[FloatRecord] = field(default_factory=list)


def prove_dispatch(
    artifact: Path,
    target: Target,
    plan: QuantPlan | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Dispatch:
    """Look every unit up in the graph that the target's provider executes.

    Args:
        plan: what the compiler decided; without it the artifact's own Q/DQ pairs say what is expected.
        shapes: input name -> the shape that engines are built for.
    """
    model = ir.load(artifact)
    units = plan.units if plan is not None else expected_units(model, target)
    reasons = plan.kept_float if plan is not None else {}
    provider, called = target.providers[0], operators.calls(model, units)
    try:
        graph = optimize(artifact, provider)
    except TargetError as error:
        no_builder = why_no_builder(builder_of(artifact))
        if provider == TENSORRT and not no_builder:
            proof, records = _in_engine(artifact, model, units, shapes or {}, error.what)
        else:
            missing = f"{error.what}; {no_builder}" if provider == TENSORRT else error.what
            proof, records = _elsewhere(artifact, units, called, provider, missing)
        return Dispatch(proof, records, _planned_floats(model, reasons))
    except QCompileError as error:
        return Dispatch(Proof(name="dispatch", passed=False, detail=error.what), [], _planned_floats(model, reasons))
    where = provider
    if provider == TENSORRT:
        records, where = _on_tensorrt(artifact, model, units, graph, shapes or {})
    else:
        by_name = graph.by_origin()
        for name, gathers in _lookups(model, graph).items():
            by_name.setdefault(name, []).extend(gathers)
        records = [
            operators.record(unit, called[name], graph, by_name, provider)
            if name in called
            else _lookup(unit, graph, by_name, target, plan is not None)
            for name, unit in units.items()
        ]
    kept = _planned_floats(model, reasons) + _heavy_floats(model, graph, units, reasons, target)
    return Dispatch(_summary(records, where), records, kept)


def _elsewhere(
    artifact: Path, units: Mapping[str, Unit], called: Mapping[str, ir.Node], provider: str, missing: str
) -> tuple[Proof, list[UnitRecord]]:
    """What can be said where `provider` does not load."""
    if called:
        try:
            return operators.prove_elsewhere(artifact, units, called, provider, missing)
        except QCompileError as error:
            return Proof(name="dispatch", passed=False, detail=error.what), []
    records = [_record(u, None, None, "not examined on this machine") for u in units.values()]
    return Proof(name="dispatch", passed=None, detail=missing), records


def _in_engine(
    artifact: Path, model: ir.Model, units: Mapping[str, Unit], shapes: Mapping[str, Sequence[int]], missing: str
) -> tuple[Proof, list[UnitRecord]]:
    """The layers of an engine that NVIDIA's builder makes without a GPU."""
    fault, records, builder = engine.read(artifact, model, units, shapes)
    proof = fault or _summary(records, f"the engine of {builder}")
    return proof.model_copy(update={"detail": f"{proof.detail}; {missing}"}), records


def _record(unit: Unit, kernel: str | None, proved: bool | None, reason: str = "") -> UnitRecord:
    return UnitRecord(
        node=unit.node, op_type=unit.op_type, form=unit.form.value, kernel=kernel, proved=proved, reason=reason
    )


def _assigned(unit: Unit, graph: OptimizedGraph, provider: str) -> UnitRecord:
    """A provider that compiles whole subgraphs shows which nodes it took, not the kernels it built."""
    names = [unit.node, *(name for name, call in graph.callers.items() if call in (unit.node, unit.lowered))]
    took = next((graph.providers[name] for name in names if name in graph.providers), None)
    if took == provider:
        return _record(unit, provider, True)
    return _record(unit, took, False, f"assigned to {took}" if took else "not found among the assigned nodes")


def _on_tensorrt(
    artifact: Path,
    model: ir.Model,
    units: Mapping[str, Unit],
    graph: OptimizedGraph,
    shapes: Mapping[str, Sequence[int]],
) -> tuple[list[UnitRecord], str]:
    """The units that TensorRT takes, and what their layers compute on where its builder is here to tell."""
    taken = [_assigned(unit, graph, TENSORRT) for unit in units.values()]
    if why_no_builder():
        return taken, TENSORRT
    fault, layers, builder = engine.read(artifact, model, units, shapes)
    if fault:
        return taken, f"{TENSORRT}, layers unknown ({fault.detail})"
    records = [layer if took.proved else took for took, layer in zip(taken, layers, strict=True)]
    return records, f"{TENSORRT}, by the engine of {builder}"


def _lookups(model: ir.Model, graph: OptimizedGraph) -> dict[str, list[onnx.NodeProto]]:
    """Gathers that lowering put in the place of another node, by that node's name."""
    gathers = {n.name: n for n in graph.nodes if n.op_type == "Gather"}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes(model):
        if node.op_type == "Gather" and node.name in gathers:
            for source in (node.name, *sources(node)):
                found.setdefault(source, []).append(gathers[node.name])
    return found


def _lookup(
    unit: Unit, graph: OptimizedGraph, by_name: Mapping[str, list[onnx.NodeProto]], target: Target, planned: bool
) -> UnitRecord:
    kernels = _kernels(unit, target)
    if unit.form is Form.PASS:  # the runtime may move codes by another operator: two Slices as one Split
        kernels |= MOVES
    seen = list(_suspects(unit, graph, by_name))
    wanted = target.providers[0]
    took = next((graph.providers[n] for n in (unit.lowered, unit.node) if n in graph.providers), wanted)
    if took != wanted:
        return _record(unit, None, False, f"assigned to {took}")
    if unit.form.float_arithmetic:
        return _in_float(unit, seen, target)
    for node in seen:
        if graph.computes_on_codes(node) and (node.op_type in kernels or not planned):
            return _record(unit, node.op_type, True)
    if not seen and unit.form is Form.PASS:
        return _record(unit, None, True, "the runtime removed it: its codes pass without a node")
    floating = next((n for n in seen if n.op_type not in ("QuantizeLinear", "DequantizeLinear")), None)
    if floating is None:
        return _record(unit, None, False, "not found in the graph that the runtime executes")
    if graph.computes_on_codes(floating):
        return _record(unit, floating.op_type, False, f"runs as {floating.op_type}, which the target's table lacks")
    return _record(unit, floating.op_type, False, f"the runtime runs it in float, as {floating.op_type}")


def _kernels(unit: Unit, target: Target) -> set[str]:
    """Operators that prove the form of `unit`: those of the way its weight is stored, or those of its row."""
    stored = {k for s in target.storages if s.lowering is unit.lowering for k in s.kernels}
    own = {unit.op_type} if unit.op_type in INTEGER_OPERATORS else set()
    return stored or own or {k for row in rows_for(target, unit.op_type) for k in row.kernels}


def _in_float(unit: Unit, seen: Sequence[onnx.NodeProto], target: Target) -> UnitRecord:
    """A unit in float arithmetic: its kernel reads codes, or they became float before it runs."""
    patterns = {unit.lowering} if unit.lowering else {r.how(unit.form) for r in rows_for(target, unit.op_type)}
    restored, kernels = Lowering.EMULATED in patterns, _kernels(unit, target)
    if restored or unit.form is Form.ROUNDED:
        kernels |= _HEAVY | {unit.op_type}
    node = next((n for n in seen if n.op_type in kernels), None)
    if node is not None:
        why = "smaller on disk, not faster: its weights are float when it runs" if restored else "as planned"
        return _record(unit, node.op_type, True, f"computes in float, {why}")
    found = next((n.op_type for n in seen), None)
    missing = f"the runtime runs it as {found}" if found else "not found in the graph that the runtime executes"
    return _record(unit, found, False, f"{missing}, not as {' or '.join(sorted(kernels))}")


def _suspects(
    unit: Unit, graph: OptimizedGraph, by_name: Mapping[str, list[onnx.NodeProto]]
) -> Iterator[onnx.NodeProto]:
    """Nodes that may be what became of `unit`, the likeliest first."""
    for name in (unit.node, unit.lowered, unit.bias, unit.activation):
        if name:
            yield from by_name.get(name, ())
    for value in (f"{unit.output}_quantized", unit.output):
        yield from graph.makers(value)


def _planned_floats(model: ir.Model, reasons: Mapping[str, str]) -> list[FloatRecord]:
    types = {str(node.name): node.op_type for node in nodes(model)}
    return [FloatRecord(node=name, op_type=types.get(name, ""), reason=why) for name, why in reasons.items()]


def _heavy_floats(
    model: ir.Model, graph: OptimizedGraph, units: Mapping[str, Unit], reasons: Mapping[str, str], target: Target
) -> list[FloatRecord]:
    """Expensive nodes that run in float and that nobody accounted for."""
    artifact = {str(n.name): n for n in nodes(model)}
    writers = {v.name: n for n in artifact.values() for v in n.outputs}
    accounted = {*reasons, *units, *(u.bias for u in units.values())}
    found: dict[str, FloatRecord] = {}
    for node in graph.nodes:
        if node.op_type not in _HEAVY or graph.computes_on_codes(node):
            continue
        name = original_name(node.name)
        name = graph.callers.get(name, name)
        written = next((writers[value] for value in (name, *node.output) if value in writers), None)
        origin = artifact.get(name) or _heavy_behind(written)
        names = [str(origin.name), *sources(origin)] if origin is not None else [name]
        if not accounted.isdisjoint(names):
            continue
        op_type = origin.op_type if origin is not None else node.op_type
        known = bool(rows_for(target, op_type))
        why = "it is not between Q/DQ" if known else f"target {target.name} has no low-precision {op_type}"
        found.setdefault(names[0], FloatRecord(node=names[0], op_type=op_type, reason=why))
    return list(found.values())


def _heavy_behind(node: ir.Node | None) -> ir.Node | None:
    """The expensive operator that a fused activation follows: fusions are named after the last value."""
    while node is not None and node.op_type not in _HEAVY:
        source = node.inputs[0] if node.inputs else None
        node = source.producer() if source is not None else None
    return node


def _listed(records: list[UnitRecord]) -> str:
    kernels = Counter(r.kernel or "removed" for r in records)
    return ", ".join(f"{n} {kernel}" for kernel, n in kernels.most_common())


def _summary(records: list[UnitRecord], provider: str) -> Proof:
    if not records:
        return Proof(name="dispatch", passed=None, detail="no operation is planned in low precision")
    failed = [r for r in records if not r.proved]
    if not failed:
        in_float = [r for r in records if Form(r.form).float_arithmetic]
        on_codes = [r for r in records if not Form(r.form).float_arithmetic]
        parts = [f"all {len(on_codes)} units run on {provider}: {_listed(on_codes)}"] if on_codes else []
        if in_float:
            parts.append(f"{len(in_float)} units stay in float arithmetic, as planned: {_listed(in_float)}")
        return Proof(name="dispatch", passed=True, detail="; ".join(parts))
    named = "; ".join(f"{r.node} ({r.reason})" for r in failed[:3]) + ("; ..." if len(failed) > 3 else "")
    detail = f"{len(failed)} of {len(records)} units do not run in low precision on {provider}: {named}"
    return Proof(name="dispatch", passed=False, detail=detail)
