"""Where an operator is tried: memory that shows what a kernel forgot or overran, and sessions bound to it.

    body    ONNX Runtime's CPU provider without our library: the operator's body in standard operators
    cpu     our CPU kernel
    cuda    our CUDA kernel

Inputs and outputs are bound, never copied. Each lies between two guards; outputs are filled with a poison before a
run. Every call runs twice, with two poisons: a byte that differs afterwards was not written, and a guard that
changed was overrun. Past the end of an input lies NaN, so that reading there shows as well.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.operators import Operator

Array = npt.NDArray[Any]
_GUARD = 256
_POISONS = (0x00, 0xFF)
_OPSET = 23
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class Machine:
    """One of the three places.

    Args:
        library: our library of kernels, None for the body.
    """

    kind: str
    library: Path | None

    def run(
        self,
        operator: Operator,
        inputs: Mapping[str, Array],
        *,
        constants: Collection[str] = (),
        attributes: Mapping[str, int | float] | None = None,
        wanted: Collection[str] = (),
    ) -> dict[str, Array]:
        """What `operator` answers, by the name of the output; types of ml_dtypes stand for bfloat16, E4M3 and int4.

        Args:
            inputs: an array for each of the operator's inputs.
            constants: the inputs that are initializers (weights, what belongs to them); the others are bound.
            wanted: the optional outputs to compute.
        """
        with self.node(operator, inputs, constants=constants, attributes=attributes, wanted=wanted) as node:
            return node.run(inputs)

    def node(
        self,
        operator: Operator,
        inputs: Mapping[str, Array],
        *,
        constants: Collection[str] = (),
        attributes: Mapping[str, int | float] | None = None,
        wanted: Collection[str] = (),
        cuda_graph: bool = False,
    ) -> BoundNode:
        """A session with this one node, bound to memory for inputs of these shapes."""
        model = _model(operator, inputs, constants, attributes or {}, wanted)
        session = self._session(ir.to_proto(model).SerializeToString(), cuda_graph)
        if self.library is not None:
            self._is_ours(session, operator)
        bound = {name: array for name, array in inputs.items() if name not in constants}
        return BoundNode(self, session, bound, _outputs(operator, inputs, wanted))

    def _session(self, model: bytes, cuda_graph: bool) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.library is not None:
            from qcompile.runtime.ops.library import register

            register(options, self.library)
        if self.kind == "cuda":
            onnxruntime.preload_dlls()
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            providers: Sequence[Any] = [(_CUDA, {"enable_cuda_graph": "1" if cuda_graph else "0"})]
        else:
            providers = [_CPU]
        return onnxruntime.InferenceSession(model, options, providers=providers)

    def _is_ours(self, session: Any, operator: Operator) -> None:
        """Without a kernel ONNX Runtime would run the body, and every test would pass for nothing."""
        provider = _CUDA if self.kind == "cuda" else _CPU
        found = {
            (node.op_type, part.ep_name)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        }
        assert (operator.name, provider) in found, f"{operator.name} has no kernel on {provider}; it ran {found}"

    def memory(self, size: int) -> Memory:
        """`size` bytes between guards."""
        return TorchMemory(size) if self.kind == "cuda" else NumpyMemory(size)


class Memory:
    """Bytes of a device, with a guard before and after."""

    address: int

    def __init__(self, size: int) -> None:
        self.size = size

    def write(self, data: bytes, poison: int) -> None:
        """Put `data` between guards of `poison`; the device has it when this returns."""
        raise NotImplementedError

    def read(self) -> bytes:
        """Guards included; waits for the device."""
        raise NotImplementedError

    def take(self, poison: int) -> bytes:
        """The bytes between the guards, after a look at these."""
        everything = self.read()
        before, inside, after = (
            everything[:_GUARD],
            everything[_GUARD : _GUARD + self.size],
            everything[_GUARD + self.size :],
        )
        guard = bytes([poison]) * _GUARD
        assert before == guard, "wrote before the start of an output"
        assert after == guard, "wrote past the end of an output"
        return inside


class NumpyMemory(Memory):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        raw = np.zeros(size + 3 * _GUARD, np.uint8)
        start = -raw.ctypes.data % _GUARD
        self._bytes = raw[start : start + size + 2 * _GUARD]
        self.address = self._bytes.ctypes.data + _GUARD

    def write(self, data: bytes, poison: int) -> None:
        guard = bytes([poison]) * _GUARD
        self._bytes[:] = np.frombuffer(guard + data + guard, np.uint8)

    def read(self) -> bytes:
        return self._bytes.tobytes()


class TorchMemory(Memory):
    def __init__(self, size: int) -> None:
        import torch

        super().__init__(size)
        self._bytes = torch.zeros(size + 2 * _GUARD, dtype=torch.uint8, device="cuda")
        assert self._bytes.data_ptr() % _GUARD == 0
        self.address = self._bytes.data_ptr() + _GUARD

    def write(self, data: bytes, poison: int) -> None:
        import torch

        guard = bytes([poison]) * _GUARD
        self._bytes.copy_(torch.frombuffer(bytearray(guard + data + guard), dtype=torch.uint8))
        torch.cuda.synchronize()

    def read(self) -> bytes:
        import torch

        torch.cuda.synchronize()
        return self._bytes.cpu().numpy().tobytes()


class BoundNode:
    """A node with fixed addresses: `run` fills the memory of its inputs, runs, and reads that of its outputs."""

    def __init__(
        self, machine: Machine, session: Any, inputs: Mapping[str, Array], outputs: Mapping[str, tuple[Any, list[int]]]
    ) -> None:
        self._session, self._outputs = session, outputs
        self._on_device = machine.kind == "cuda"
        self._sources = {name: machine.memory(array.nbytes) for name, array in inputs.items()}
        self._sinks = {
            name: machine.memory(int(np.prod(shape)) * dtype.itemsize) for name, (dtype, shape) in outputs.items()
        }
        device = "cuda" if self._on_device else "cpu"
        self._binding = session.io_binding()
        for name, array in inputs.items():
            where = self._sources[name].address
            self._binding.bind_input(name, device, 0, _onnx_type(array.dtype), list(array.shape), where)
        for name, (dtype, shape) in outputs.items():
            self._binding.bind_output(name, device, 0, _onnx_type(dtype), shape, self._sinks[name].address)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, once each output is seen to be written wholly and nothing around it."""
        self._run(inputs, _POISONS[0])  # with a CUDA graph: the capture
        first = self._run(inputs, _POISONS[0])
        second = self._run(inputs, _POISONS[1])
        for name, data in first.items():
            assert data == second[name], f"{name} is not written wholly, or differs from run to run"
        return {
            name: np.frombuffer(second[name], dtype).reshape(shape) for name, (dtype, shape) in self._outputs.items()
        }

    def _run(self, inputs: Mapping[str, Array], poison: int) -> dict[str, bytes]:
        for name, memory in self._sources.items():
            memory.write(np.ascontiguousarray(inputs[name]).tobytes(), 0xFF)
        for memory in self._sinks.values():
            memory.write(bytes([poison]) * memory.size, poison)
        self._session.run_with_iobinding(self._binding)
        return {name: memory.take(poison) for name, memory in self._sinks.items()}

    def __enter__(self) -> BoundNode:
        return self

    def __exit__(self, *_: object) -> None:
        del self._binding, self._session  # before the memory that they are bound to


def why_no_gpu() -> str:
    """Why kernels cannot run on a GPU here; empty when they can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    try:
        import torch
    except ImportError:
        return "torch, which holds the memory on the device, is not installed"
    if not torch.cuda.is_available():
        return "this torch has no CUDA"
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return "the installed ONNX Runtime has no CUDA provider"
    return ""


def _model(
    operator: Operator,
    inputs: Mapping[str, Array],
    constants: Collection[str],
    attributes: Mapping[str, int | float],
    wanted: Collection[str],
) -> ir.Model:
    values = {}
    for operand in operator.inputs:
        array = inputs[operand.name]
        value = ir.Value(name=operand.name, type=ir.TensorType(operand.dtype), shape=ir.Shape(array.shape))
        if operand.name in constants:
            value.const_value = ir.tensor(array, dtype=operand.dtype, name=operand.name)
        values[operand.name] = value
    node = operator.node(list(values.values()), name="node", attributes=attributes, wanted=wanted)
    kept = [value for value in node.outputs if value.name]
    for value, operand in zip(node.outputs, operator.outputs, strict=False):
        value.name = operand.name if value.name else ""
    graph = ir.Graph(
        [value for name, value in values.items() if name not in constants],
        kept,
        nodes=[node],
        initializers=[value for name, value in values.items() if name in constants],
        opset_imports={"": _OPSET},
        name=operator.name,
    )
    model = ir.Model(graph, ir_version=11)
    operator.declare(model)
    return model


def _outputs(
    operator: Operator, inputs: Mapping[str, Array], wanted: Collection[str]
) -> dict[str, tuple[np.dtype[Any], list[int]]]:
    """Type and shape of each output, from the letters of the operator's shapes."""
    dims: dict[str, list[int]] = {"1": [1]}
    for operand in operator.inputs:
        if operand.or_one:
            continue
        shape, letters = list(inputs[operand.name].shape), list(operand.shape)
        if letters[:1] == ["..."]:
            leading = len(shape) - len(letters) + 1
            dims["..."], shape, letters = shape[:leading], shape[leading:], letters[1:]
        dims |= {letter: [dim] for letter, dim in zip(letters, shape, strict=True) if letter not in dims}
    return {
        operand.name: (np.dtype(operand.dtype.numpy()), [dim for letter in operand.shape for dim in dims[letter]])
        for operand in operator.outputs
        if not operand.optional or operand.name in wanted
    }


def _onnx_type(dtype: np.dtype[Any]) -> int:
    return int(ir.DataType.from_numpy(dtype).value)
