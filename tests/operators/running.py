"""One operator as a model, and a run of it. Without a library of kernels ONNX Runtime inlines the body."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.compiler.operators import Operator

Array = np.ndarray[Any, Any]
CPU = "CPUExecutionProvider"
IR_VERSIONS = {13: 7, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""The IR version that came with an opset."""
_TYPES = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(bfloat16)": ir.DataType.BFLOAT16,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(int8)": ir.DataType.INT8,
    "tensor(float8e4m3fn)": ir.DataType.FLOAT8E4M3FN,
}


def model_of(
    operator: Operator,
    shapes: Mapping[str, Sequence[int | str]],
    *,
    opset: int = 21,
    constants: Mapping[str, Array] | None = None,
    attributes: Mapping[str, int | float] | None = None,
    wanted: Collection[str] | None = None,
) -> onnx.ModelProto:
    """A valid model of one node called "it"; its outputs have the names of the operator's.

    Args:
        shapes: of the graph inputs.
        constants: the other inputs, as initializers.
        wanted: the optional outputs to have; by default all.
    """
    inputs, initializers = [], []
    for operand in operator.inputs:
        if constants is not None and operand.name in constants:
            tensor = ir.tensor(constants[operand.name], dtype=operand.dtype, name=operand.name)
            value = ir.Value(name=operand.name, type=ir.TensorType(operand.dtype), shape=tensor.shape)
            value.const_value = tensor
            initializers.append(value)
        else:
            value = ir.val(operand.name, operand.dtype, list(shapes[operand.name]))
        inputs.append(value)
    optional = {o.name for o in operator.outputs if o.optional}
    node = operator.node(inputs, name="it", attributes=attributes, wanted=optional if wanted is None else wanted)
    outputs = [value for value in node.outputs if value.name]
    for value in outputs:
        value.name = str(value.name).removeprefix("it.")
    graph = ir.Graph(
        [value for value in inputs if value not in initializers],
        outputs,
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


def session(
    model: onnx.ModelProto,
    options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str] = (CPU,),
) -> onnxruntime.InferenceSession:
    """A session at the default optimization level unless `options` say otherwise."""
    if options is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))


def run(on: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name."""
    types = {value.name: _TYPES[value.type] for value in (*on.get_inputs(), *on.get_outputs())}
    given = {name: _ort_value(array, types[name]) for name, array in feeds.items()}
    names = [output.name for output in on.get_outputs()]
    results = on.run_with_ort_values(names, given)
    return {name: _array(value, types[name]) for name, value in zip(names, results, strict=True)}


def _ort_value(array: Array, dtype: ir.DataType) -> onnxruntime.OrtValue:
    """numpy has no narrow floats: their bits go in as integers."""
    if dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN):
        bits = np.ascontiguousarray(array).view(np.uint16 if dtype is ir.DataType.BFLOAT16 else np.uint8)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, dtype.value)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _array(value: onnxruntime.OrtValue, dtype: ir.DataType) -> Array:
    shape = value.shape()
    count = int(np.prod(shape))
    data = ctypes.string_at(value.data_ptr(), count * dtype.numpy().itemsize) if count else b""
    return np.frombuffer(data, dtype.numpy()).reshape(shape)
