"""An ONNX graph run by torch, operator by operator, with gradients.

    values = TorchGraph(model)(feeds, wanted)       name -> tensor, differentiable in feeds and in `tensors`

Values keep their ONNX names, so what is learned here (an input, a weight, a scale) is written back into the
same ONNX graph: nothing is exported again. Numbers agree with ONNX Runtime to rounding. For batches of
gradients, not for speed.

Errors: QCompileError without torch, or when the graph holds an operator that has no torch form here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.errors import ModelError, QCompileError

if TYPE_CHECKING:
    import torch

    Edit = Callable[[str, torch.Tensor], torch.Tensor]


def require_torch(what: str) -> None:
    """Raise a QCompileError that says how to get torch, where it is not installed; `what` needs it."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise QCompileError(f"{what} needs torch", hint="pip install 'qcompile[torch]'") from None


class TorchGraph:
    """The main graph of an ONNX model as a function on torch tensors.

    Attributes:
        tensors: the constants by name. Put another tensor in the place of one to learn it.
        inputs, outputs: names of the graph's inputs (without constants) and outputs.

    Raises:
        QCompileError: torch is not installed.
        ModelError: an operator has no torch form here; names all of them.
    """

    def __init__(self, model: ir.Model, device: str = "cpu") -> None:
        require_torch("running a graph with gradients")
        from qcompile.runtime.torch_operators import OPERATORS, tensor_of

        self._nodes = [n for n in model.graph if n.op_type != "Constant"]
        self._opset = model.graph.opset_imports.get("", 1)
        unknown = sorted({f"{n.domain}::{n.op_type}".removeprefix("::") for n in self._nodes} - OPERATORS.keys())
        if unknown:
            raise ModelError(
                f"the graph cannot be differentiated: no torch form of {', '.join(unknown)}",
                where=next(str(n.name) for n in self._nodes if n.op_type == unknown[0].rpartition("::")[2]),
            )
        self.inputs = [str(v.name) for v in model.graph.inputs if not v.is_initializer()]
        self.outputs = [str(v.name) for v in model.graph.outputs]
        self.tensors: dict[str, torch.Tensor] = {}
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            self.tensors[name] = tensor_of(value.const_value.numpy()).to(device)
        for node in model.graph:
            if node.op_type == "Constant":
                self.tensors[str(node.outputs[0].name)] = tensor_of(_constant(node)).to(device)

    def __call__(
        self, feeds: Mapping[str, torch.Tensor], wanted: Sequence[str] | None = None, edit: Edit | None = None
    ) -> dict[str, torch.Tensor]:
        """The values named `wanted` (left out: the graph's outputs) for the inputs `feeds`.

        Args:
            edit: called with each floating-point activation when it is made; what it returns stands in its place
                (fake quantization, noise).

        Raises:
            ModelError: an operator fails on these shapes, or uses an option that has no torch form here.
        """
        from qcompile.runtime.torch_operators import OPERATORS, Unsupported

        wanted = self.outputs if wanted is None else wanted
        values: dict[str, torch.Tensor] = {**self.tensors, **feeds}
        left = Counter(str(v.name) for n in self._nodes for v in n.inputs if v is not None)
        left.update(wanted)
        needed = {name for name in wanted if name not in values}
        for node in self._nodes:
            if not needed:
                break
            inputs = [None if v is None else values[str(v.name)] for v in node.inputs]
            try:
                made = OPERATORS[f"{node.domain}::{node.op_type}".removeprefix("::")](node, inputs, self._opset)
            except (Unsupported, RuntimeError) as error:
                shapes = ", ".join(str(list(t.shape)) for t in inputs if t is not None)
                raise ModelError(
                    f"torch cannot run {node.op_type}: {str(error).splitlines()[0]}",
                    where=f"node '{node.name}', inputs {shapes}",
                ) from None
            for value, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                name = str(value.name)
                changes = edit is not None and tensor.is_floating_point()
                values[name] = edit(name, tensor) if changes and edit is not None else tensor
                needed.discard(name)
            for used in node.inputs:
                left[str(used.name) if used is not None else ""] -= 1
                if used is not None and not left[str(used.name)]:
                    values.pop(str(used.name), None)
        return {name: values[name] for name in wanted}


def _constant(node: ir.Node) -> object:
    attribute = next(iter(node.attributes.values()))
    return attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value
