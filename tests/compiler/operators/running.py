"""One operator as a model, run by ONNX Runtime, which inlines its body."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.compiler.operators import Operator

Array = np.ndarray[Any, Any]
IR_VERSIONS = {13: 7, 17: 8, 18: 8, 19: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""The IR version that came with an opset."""


def model_of(
    operator: Operator,
    shapes: Mapping[str, list[int | str]],
    *,
    opset: int = 21,
    constants: Mapping[str, Array] | None = None,
    attributes: Mapping[str, int | float] | None = None,
    wanted: Collection[str] = (),
) -> onnx.ModelProto:
    """A valid model of one node; inputs named in `constants` are initializers, the others have `shapes`."""
    inputs, initializers = [], []
    for operand in operator.inputs:
        if constants is not None and operand.name in constants:
            tensor = ir.tensor(constants[operand.name], dtype=operand.dtype, name=operand.name)
            initializers.append(ir.Value(name=operand.name, type=ir.TensorType(operand.dtype), const_value=tensor))
            inputs.append(initializers[-1])
            inputs[-1].shape = tensor.shape
        else:
            inputs.append(ir.val(operand.name, operand.dtype, shapes[operand.name]))
    node = operator.node(inputs, name="it", attributes=attributes, wanted=wanted)
    graph = ir.Graph(
        [value for value in inputs if value not in initializers],
        [value for value in node.outputs if value.name],
        nodes=[node],
        initializers=initializers,
        opset_imports={"": opset},
        name="g",
    )
    model = ir.Model(graph, ir_version=IR_VERSIONS[opset])
    operator.declare(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs at the default optimization level, on the CPU provider."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, dict(feeds))
    return found
