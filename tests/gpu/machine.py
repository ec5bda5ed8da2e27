"""Where an operator is tried.

    body    ONNX Runtime's CPU provider without our library: the operator's body in standard operators
    cpu     our CPU kernel
    cuda    our CUDA kernel

Inputs and outputs are bound, never copied. Each lies between two guards; outputs are filled with a poison before a
run. Every call runs with two poisons: a byte that differs afterwards was not written, and a guard that changed was
overrun. Past the end of an input lies NaN, so that reading there shows as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompile.compiler.operators import Operator
from qcompile.runtime.gpu import why_no_gpu
from qcompile.runtime.ops.library import register
from tests.gpu.memory import Memory, NumpyMemory, TorchMemory
from tests.operators.operands import CONSTANTS, attributes_of, operands
from tests.operators.reference import UNIT, Array, expected
from tests.operators.running import model_of

_POISONS = (0x00, 0xFF)
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class Machine:
    """One of the three places.

    Args:
        library: our library of kernels, None for the body.
    """

    kind: str
    library: Path | None

    def check(
        self, operator: Operator, rows: tuple[int, ...], n: int, k: int, *, block: int = 32, static: bool = False
    ) -> None:
        """Run `operator` on random operands and compare every output with the reference.

        Args:
            rows: leading dimensions of the activations.
            static: the activations have one scale.
        """
        inputs = operands(operator, rows, n, k, block=block, static=static)
        attributes = attributes_of(operator, block=block)
        found = self.run(operator, inputs, attributes)
        accumulation = self.accumulation(operator, inputs)
        for name, right in expected(operator, inputs, attributes, accumulation=accumulation).items():
            right.check(found[name], f"{operator.name}.{name} of {rows} x {n} x {k} on {self.kind}")

    def run(
        self,
        operator: Operator,
        inputs: Mapping[str, Array],
        attributes: Mapping[str, int | float] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """The outputs by name; types of ml_dtypes stand for bfloat16, E4M3 and int4.

        Args:
            wanted: the optional outputs to compute; by default all.
        """
        with self.node(operator, inputs, attributes, wanted) as node:
            return node.run(inputs)

    def node(
        self,
        operator: Operator,
        inputs: Mapping[str, Array],
        attributes: Mapping[str, int | float] | None = None,
        wanted: Collection[str] | None = None,
        *,
        cuda_graph: bool = False,
    ) -> BoundNode:
        """A session with this one node, bound to memory for activations of these shapes; its weights are constants."""
        moving = {name: array for name, array in inputs.items() if name not in CONSTANTS}
        fixed = {name: array for name, array in inputs.items() if name in CONSTANTS}
        shapes = {name: array.shape for name, array in moving.items()}
        model = model_of(operator, shapes, constants=fixed, attributes=attributes, wanted=wanted)
        session = self.session(model.SerializeToString(), cuda_graph)
        if self.kind != "body":
            self.demand_kernel(session, operator)
        return BoundNode(self, session, moving, _outputs(operator, inputs, wanted))

    def session(self, model: bytes, cuda_graph: bool = False) -> Any:
        """ONNX Runtime's session on this machine."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.library is not None:
            register(options, self.library)
        if self.kind == "cuda":
            onnxruntime.preload_dlls()
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            providers: Sequence[Any] = [(_CUDA, {"enable_cuda_graph": "1" if cuda_graph else "0"})]
        else:
            providers = [_CPU]
        return onnxruntime.InferenceSession(model, options, providers=providers)

    def demand_kernel(self, session: Any, operator: Operator) -> None:
        """Fail without a kernel: ONNX Runtime would run the body, and every test would pass for nothing."""
        provider = _CUDA if self.kind == "cuda" else _CPU
        parts = session.get_provider_graph_assignment_info()
        found = {(node.op_type, part.ep_name) for part in parts for node in part.get_nodes()}
        assert (operator.name, provider) in found, f"{operator.name} has no kernel on {provider}; it ran {found}"

    def memory(self, size: int) -> Memory:
        """`size` bytes between guards."""
        return TorchMemory(size) if self.kind == "cuda" else NumpyMemory(size)

    def accumulation(self, operator: Operator, inputs: Mapping[str, Array]) -> float:
        """Relative error of one addition, as the reference wants it."""
        if self.kind != "cuda":
            return UNIT
        if "E4M3" in operator.name:
            return 2.0**-17  # Hopper keeps 14 bits of a sum of 32 products
        if operator.name.startswith("Linear24") and "x" in inputs:
            # cuSPARSELt rounds the bias, and the sum that GELU and SiLU are taken of, to the type: two roundings.
            return float(ml_dtypes.finfo(inputs["x"].dtype).eps) / inputs["x"].shape[-1]
        return 2.0**-21  # tensor cores truncate


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


def why_not_on_gpu() -> str:
    """Why kernels cannot run on a GPU here; empty when they can."""
    if missing := why_no_gpu():
        return missing
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


def _outputs(
    operator: Operator, inputs: Mapping[str, Array], wanted: Collection[str] | None
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
        if not operand.optional or wanted is None or operand.name in wanted
    }


def _onnx_type(dtype: np.dtype[Any]) -> int:
    return int(ir.DataType.from_numpy(dtype).value)
