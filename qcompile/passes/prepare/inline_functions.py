"""Calls of model-local functions are replaced by the functions' bodies."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.errors import ModelError


class InlineFunctions(Pass):
    """Inline every function of the model, nested ones too, so that later passes see plain operators.

    The nodes of a body stand for the node that called it (the inliner hands the metadata down).

    Raises:
        ModelError: functions call each other in a cycle, or disagree with the model about an opset.
    """

    name: ClassVar[str] = "inline-functions"
    phase: ClassVar[Phase] = Phase.PREPARE
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if not model.functions:
            return False
        from onnx_ir.passes.common import InlinePass

        domains = {function.domain for function in model.functions.values()}
        for function in model.functions.values():
            for node in function.all_nodes():
                node.name = node.name or node.op_type
        calls = [n for n in model.graph.all_nodes() if n.op_identifier() in model.functions]
        try:
            InlinePass()(model)
        except (ir.passes.PassError, ir.passes.InvariantError, ValueError) as error:
            raise ModelError(
                "the functions of the model cannot be inlined", hint=str(error.__cause__ or error)
            ) from error
        model.functions.clear()
        for domain in domains - {n.domain for n in model.graph.all_nodes()}:
            model.graph.opset_imports.pop(domain, None)
        return bool(calls)
