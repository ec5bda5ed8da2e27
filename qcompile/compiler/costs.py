"""What an operation takes in each of its forms, and what a conversion takes: as measured, or by the table.

Times in ns for one run on samples as they were seen. Where some operations could not be measured, the table's
figures stand beside measured ones, so they are brought to the pace of the device first.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import name_of, rank
from qcompile.compiler.placement import Conversion
from qcompile.compiler.plan import Form
from qcompile.compiler.targets.table import Target, Work
from qcompile.compiler.units import Candidate, work

Elements = Callable[[ir.Value], float]
"""How many elements a tensor has."""


def operation_times(candidate: Candidate, elements: Elements, context: CompileContext) -> dict[Form, float]:
    """Time of each form that is open to an operation, FLOAT among them."""
    by_table, measured = table_times(candidate, elements), context.measured
    if measured is None:
        return by_table
    known = measured.operations.get(str(candidate.node.name), {})
    return {form: time * measured.pace for form, time in by_table.items()} | dict(known)


def conversion_time(value: ir.Value, elements: Elements, context: CompileContext) -> Conversion:
    """Time to quantize and to dequantize a tensor."""
    by_table, measured = table_conversion(value, elements, context.target), context.measured
    if measured is None:
        return by_table
    scaled = Conversion(by_table.quantize * measured.pace, by_table.dequantize * measured.pace)
    return measured.conversions.get(name_of(value), scaled)


def table_times(candidate: Candidate, elements: Elements) -> dict[Form, float]:
    """The same by the target's table."""
    inputs = max(map(elements, candidate.reads()), default=0.0)
    done = work(candidate, inputs, elements(candidate.output))
    forms = {form: cost.time(done) for form, cost in candidate.row.forms.items()}
    return {Form.FLOAT: candidate.row.float_cost.time(done)} | forms


def table_conversion(value: ir.Value, elements: Elements, target: Target) -> Conversion:
    """The same by the target's table; an image may change its layout besides."""
    done = Work(outputs=elements(value))
    extra = target.relayout.time(done) if rank(value) == 4 else 0.0
    return Conversion(target.quantize.time(done) + extra, target.dequantize.time(done) + extra)
