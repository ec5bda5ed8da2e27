"""The artifact against the target's table: every Q/DQ pattern must be one that the target takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.formats import INT32
from qcompile.compiler.graph import constant, is_constant, nodes, opset
from qcompile.compiler.provenance import sources
from qcompile.compiler.report import Proof
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.table import Lowering, PlacementRule, Row, Target
from qcompile.compiler.verification.expectations import (
    INTEGER_OPERATORS,
    dequantizer,
    is_weight,
    quantizer_after,
    rows_for,
)

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Fault:
    """One place where the artifact breaks a rule of the target: the node, the rule, and the way out."""

    node: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule} ({self.remedy})"


def prove_legality(model: ir.Model, target: Target) -> Proof:
    """`find_faults` as a proof."""
    faults = find_faults(model, target)
    if not faults:
        return Proof(name="legality", passed=True, detail=f"every Q/DQ pattern is in the table of {target.name}")
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return Proof(name="legality", passed=False, detail="; ".join(map(str, faults[:3])) + more)


def find_faults(model: ir.Model, target: Target) -> list[Fault]:
    """Everything in `model` that `target` does not take; empty when it is legal."""
    found: list[Fault] = []
    if target.highest_opset is not None and opset(model) > target.highest_opset:
        rule, remedy = f"opset {opset(model)}", f"{target.name} reads opset {target.highest_opset} and older"
        found.append(Fault("the model", rule, remedy))
    for node in nodes(_inlined(model) if model.functions else model):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _conversion_faults(node, target)
        elif node.op_type in INTEGER_OPERATORS:
            found += _operator_faults(node, target)
        elif any(dequantizer(v) is not None for v in node.inputs):
            found += _pattern_faults(node, target)
        found += [_fault(node, rule.fault, rule.remedy) for rule in target.rules if rule.broken(node)]
    return found


def _inlined(model: ir.Model) -> ir.Model:
    """A copy in which the bodies of functions stand in the place of their calls, as the runtime sees them.

    The operators on weights alone stay: their bodies restore the weight in standard operators, and there is no other
    way to say it.
    """
    from onnx_ir.passes.common import InlinePass

    copy = model.clone()
    for key in [k for k in copy.functions if k[1].startswith("LinearW4A16")]:
        del copy.functions[key]
    own = {node.name for node in nodes(copy)}
    InlinePass()(copy)
    for node in nodes(copy):
        if node.name not in own:
            node.name = "/".join((*sources(node)[:1], str(node.name)))
    return copy


def _fault(node: ir.Node, rule: str, remedy: str) -> Fault:
    return Fault(str(node.name), rule, remedy)


def _conversion_faults(node: ir.Node, target: Target) -> Iterator[Fault]:
    """Rules of a single QuantizeLinear or DequantizeLinear: its scale, its zero point, its element type."""
    scale = _scale(node)
    if scale is None:
        yield _fault(node, "its scale is not a constant", "fold the scale into an initializer")
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield _fault(node, "its scale is not positive", "calibrate with data in which the tensor is not constant")
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    dtype = _codes_type(node)
    if codes is not None and is_constant(codes) and dtype == INT32.dtype:
        return  # a bias; its rules belong to the unit
    weight = is_constant(node.inputs[0]) if node.op_type == "QuantizeLinear" else is_weight(node)
    allowed = {f.activation: f.symmetric == (True,) for f in target.formats}  # whether the zero point must be 0
    if weight:
        allowed |= {f.weight: f.weight.is_signed for f in target.formats if f.weight not in allowed}
        blocks = {f: s.symmetric == (True,) for s in _dequantized_blocks(target) for f in s.formats}
        allowed = blocks | allowed
    fitting = [must_be_zero for fmt, must_be_zero in allowed.items() if fmt.dtype == dtype]
    if dtype is not None and not fitting:
        names = " or ".join(fmt.name for fmt in allowed)
        yield _fault(node, f"{dtype.name.lower()} codes; {target.name} takes {names}", "compile for this target")
    elif fitting and all(fitting) and not _is_zero(node):
        yield _fault(node, "its zero point is not 0", f"{target.name} takes such codes only with zero point 0")
    if not weight and scale is not None and scale.size > 1:
        yield _fault(node, "an activation with more than one scale", "quantize activations per tensor")


def _dequantized_blocks(target: Target) -> list[Storage]:
    """How the target takes weights alone as codes behind a DequantizeLinear."""
    return [s for s in target.storages if s.lowering is Lowering.BLOCKED_DQ]


def _operator_faults(node: ir.Node, target: Target) -> Iterator[Fault]:
    known = {k for row in target.rows for k in row.kernels} | {k for s in target.storages for k in s.kernels}
    if target.providers[0] != _CPU and node.op_type not in known:
        yield _fault(
            node, f"{node.op_type} has no kernel on {target.name}", "compile for this target, or run it on the CPU"
        )


def _pattern_faults(node: ir.Node, target: Target) -> Iterator[Fault]:
    """Rules of an operator that reads dequantized values."""
    if target.unfused:
        yield _fault(node, f"computes in float between conversions: {target.unfused}", "compile for this target")
        return
    rows = rows_for(target, node.op_type)
    weighted = next((row for row in rows if row.weight is not None and _reads_weight(node, row)), None)
    if weighted is not None:
        yield from _weighted_faults(node, weighted, target)
    elif node.op_type == "Add" and any("residual" in row.variant for row in rows):
        yield from _residual_faults(node, rows)
    if node.op_type == "Concat" and target.unify_concat:
        yield from _shared_scale_faults(node, "Concat", "give the inputs of a Concat one scale")
    if any(row.same_params for row in rows):
        yield from _shared_scale_faults(node, node.op_type, "an operator that moves codes keeps their scale")


def _reads_weight(node: ir.Node, row: Row) -> bool:
    """Whether the weight position holds a constant, in float or behind its DequantizeLinear."""
    position = row.weight
    if position is None or len(node.inputs) <= position:
        return False
    conversion = dequantizer(node.inputs[position])
    return is_weight(conversion) if conversion is not None else is_constant(node.inputs[position])


def _weighted_faults(node: ir.Node, row: Row, target: Target) -> Iterator[Fault]:
    assert row.weight is not None
    weight = dequantizer(node.inputs[row.weight])
    activations = [dequantizer(node.inputs[i]) for i in row.activations if i < len(node.inputs)]
    quantized = all(a is not None for a in activations)
    if weight is None and quantized:
        if _must_be_whole(node, target):
            yield _fault(node, "its activation is quantized, its weight is not", "quantize both or neither")
        return
    if weight is not None and not quantized:
        stored = [s for s in _dequantized_blocks(target) if node.op_type in s.op_types]
        if any(f.dtype == _codes_type(weight) for s in stored for f in s.formats):
            return
        yield _fault(node, "its weight is quantized, its activation is not", "quantize both or neither")
        return
    scale = _scale(weight) if weight is not None else None
    if weight is None or scale is None:
        return
    signed = _codes_type(weight) not in (ir.DataType.UINT8, ir.DataType.UINT4)
    if signed and not _is_zero(weight):
        yield _fault(node, "the zero point of its weight is not 0", "quantize weights symmetrically")
    if scale.size > 1 and row.weight_axis is not None:
        wanted, axis = row.weight_axis(node), weight.attributes.get_int("axis", 1)
        if axis != wanted:
            yield _fault(node, f"its weight has scales along axis {axis}", f"{target.name} takes axis {wanted}")
    yield from _bias_faults(node, row, target, activations[0], scale)


def _must_be_whole(node: ir.Node, target: Target) -> bool:
    """Whether a float weight behind a quantized activation is a fault: not where the runtime leaves the operator
    float, but where it would quantize the weight itself."""
    swallowed = node.op_type in target.swallows and quantizer_after(node) is not None
    return swallowed or target.placement is PlacementRule.WEIGHTED_INPUTS


def _bias_faults(
    node: ir.Node, row: Row, target: Target, activation: ir.Node | None, weight_scale: npt.NDArray[np.float64]
) -> Iterator[Fault]:
    bias = dequantizer(node.inputs[row.bias]) if row.bias is not None and len(node.inputs) > row.bias else None
    if bias is None:
        return
    if target.float_bias:
        yield _fault(node, "a DequantizeLinear on its bias", f"{target.name} wants the bias in float")
        return
    if _codes_type(bias) != INT32.dtype or not _is_zero(bias):
        yield _fault(node, "its bias is not int32 with zero point 0", "store it as round(b / (s_x * s_w))")
        return
    scale, given = _scale(bias), _scale(activation)
    if scale is None or given is None:
        return
    if not np.allclose(np.broadcast_to(given * weight_scale, scale.shape), scale, rtol=1e-3, atol=0):
        yield _fault(node, "the scale of its bias is not s_x * s_w", "store the bias as round(b / (s_x * s_w))")


def _residual_faults(node: ir.Node, rows: list[Row]) -> Iterator[Fault]:
    """One quantized branch of an Add only pays where the other comes straight from a convolution."""
    quantized = [i for i, v in enumerate(node.inputs) if dequantizer(v) is not None]
    if len(quantized) == 1 and not any(row.activations == tuple(quantized) and row.selects(node) for row in rows):
        yield _fault(
            node,
            "one branch of an Add is quantized and the other does not come from a convolution",
            "quantize the shortcut of a residual Add, or neither branch",
        )


def _shared_scale_faults(node: ir.Node, what: str, remedy: str) -> Iterator[Fault]:
    conversions = [c for v in node.inputs if (c := dequantizer(v)) is not None]
    after = quantizer_after(node)
    if after is not None:
        conversions.append(after)
    params = {(_bytes(c.inputs[1]), _bytes(c.inputs[2]) if len(c.inputs) > 2 else b"\0") for c in conversions}
    if len(params) > 1:
        yield _fault(node, f"the scales around this {what} differ", remedy)


def _bytes(value: ir.Value | None) -> bytes:
    array = constant(value)
    return b"\0" if array is None or not array.any() else array.tobytes()


def _scale(conversion: ir.Node | None) -> npt.NDArray[np.float64] | None:
    array = constant(conversion.inputs[1]) if conversion is not None else None
    return None if array is None else array.astype(np.float64)


def _is_zero(conversion: ir.Node) -> bool:
    if len(conversion.inputs) < 3 or conversion.inputs[2] is None:
        return True
    array = constant(conversion.inputs[2])
    return array is not None and not array.any()


def _codes_type(conversion: ir.Node) -> ir.DataType | None:
    """Element type of the codes, from the zero point or from the codes themselves."""
    if len(conversion.inputs) > 2 and conversion.inputs[2] is not None:
        return conversion.inputs[2].dtype
    if conversion.op_type == "DequantizeLinear":
        source = conversion.inputs[0]
        return source.dtype if source is not None else None
    wanted = conversion.attributes.get_int("output_dtype", 0)
    return ir.DataType(wanted) if wanted else ir.DataType.UINT8
