"""Our kernels as a user runs them: in ONNX Runtime, captured in a CUDA graph, on tensors of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.operators import Operator

_OPSET = 21
Step = tuple[Operator, Mapping[str, int | float]]
"""An operator and its attributes."""

Tensors = Mapping[str, Any]
"""torch tensors on the device, by the names of operands."""


def captured(
    steps: Sequence[Step],
    sets: Sequence[Tensors],
    *,
    constants: Collection[str] = (),
    int4: Mapping[str, tuple[int, int]] | None = None,
    wanted: Collection[str] = (),
) -> Callable[[], None]:
    """The chain `steps` once for each set of tensors, as one CUDA graph; the function replays it."""
    return session(chained(steps, sets, constants, int4 or {}, wanted), sets)


def chained(
    steps: Sequence[Step],
    sets: Sequence[Tensors],
    constants: Collection[str] = (),
    int4: Mapping[str, tuple[int, int]] | None = None,
    wanted: Collection[str] = (),
) -> ir.Model:
    """A model with the chain `steps` for each of `sets`.

    The results of a step are inputs of the next where the names match, and outputs of the model otherwise.

    Args:
        constants: operands that are initializers, as kernels that prepare their weight want it.
        int4: packed operands, and their shapes in elements.
        wanted: the optional outputs to have.
    """
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    nodes = []
    for number, tensors in enumerate(sets):
        values: dict[str, ir.Value] = {}
        results: dict[str, ir.Value] = {}
        for operator, attributes in steps:
            for operand in operator.inputs:
                if operand.name in values:
                    results.pop(operand.name, None)
                    continue
                tensor, name = tensors[operand.name], f"{operand.name}.{number}"
                shape = ir.Shape((int4 or {}).get(operand.name, tuple(tensor.shape)))
                value = ir.Value(name=name, type=ir.TensorType(operand.dtype), shape=shape)
                if operand.name in constants:
                    array = tensor.cpu().numpy().astype(operand.dtype.numpy())
                    value.const_value = ir.tensor(array, dtype=operand.dtype, name=name)
                    initializers.append(value)
                else:
                    inputs.append(value)
                values[operand.name] = value
            taken = [values[operand.name] for operand in operator.inputs]
            node = operator.node(taken, name=f"{operator.name}.{number}", attributes=attributes, wanted=wanted)
            nodes.append(node)
            for value, operand in zip(node.outputs, operator.outputs, strict=False):
                if value.name:
                    value.name = f"{operand.name}.{number}"
                    values[operand.name] = results[operand.name] = value
        outputs += results.values()
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": _OPSET}, name="benchmark"
    )
    model = ir.Model(graph, ir_version=10)
    for operator, _ in steps:
        operator.declare(model)
    return model


def session(model: ir.Model, sets: Sequence[Tensors], *, library: bool = True) -> Callable[[], None]:
    """The model on torch's current device and stream, captured; the function replays it and does not wait."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if library:
        from qcompile.runtime.ops.library import register

        register(options, _library())
    cuda = {"enable_cuda_graph": "1", "user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
    made = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=[("CUDAExecutionProvider", cuda)]
    )
    ran = {node.op_type for part in made.get_provider_graph_assignment_info() for node in part.get_nodes()}
    if missing := {node.op_type for node in model.graph} - ran:
        raise RuntimeError(f"no kernel for {', '.join(sorted(missing))}: the definition would be timed")
    binding, kept = made.io_binding(), list(sets)
    for value in model.graph.inputs:
        assert value.name is not None
        operand, number = value.name.rsplit(".", 1)
        _bind(binding.bind_input, value, sets[int(number)][operand].data_ptr())
    for value in model.graph.outputs:
        assert value.dtype is not None
        size = int(np.prod(_shape(value)) * value.dtype.itemsize)
        kept.append({"y": torch.empty(size, dtype=torch.uint8, device="cuda")})
        _bind(binding.bind_output, value, kept[-1]["y"].data_ptr())
    run = onnxruntime.RunOptions()
    run.add_run_config_entry("disable_synchronize_execution_providers", "1")
    made.run_with_iobinding(binding)

    def replay(kept: Any = kept) -> None:
        made.run_with_iobinding(binding, run)

    return replay


def _bind(bind: Callable[..., None], value: ir.Value, address: int) -> None:
    assert value.dtype is not None
    bind(value.name, "cuda", 0, int(value.dtype.value), _shape(value), address)


def _shape(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [int(dim) for dim in value.shape.numpy()]


def _library() -> Any:
    from qcompile.runtime.ops.places import find

    place = find()
    if place is None:
        raise SystemExit("there is no library of kernels: qcompile ops build --cuda, or QCOMPILE_OPS=FILE")
    return place.path
