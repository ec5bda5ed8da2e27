"""What others have for the same layers: PyTorch (cuBLASLt and cuSPARSELt underneath) and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

Call = Callable[[int], Any]
Tensors = dict[str, Any]


def half(sets: Sequence[Tensors]) -> Call:
    """cuBLASLt in float16, bias in its epilogue."""
    from torch.nn.functional import linear

    return lambda i: linear(sets[i]["x_half"], sets[i]["w_half"], sets[i]["bias_half"])


def int_mm(sets: Sequence[Tensors]) -> Call:
    """cuBLASLt in int8: the int32 product alone, neither scaled nor cast. It wants more than 16 rows."""
    import torch

    return lambda i: torch._int_mm(sets[i]["x_q"], sets[i]["w"].t())


def scaled_mm(sets: Sequence[Tensors]) -> Call:
    """cuBLASLt or CUTLASS in E4M3 with a scale for each row and each column; bfloat16 out."""
    import torch

    return lambda i: torch._scaled_mm(
        sets[i]["x_q"],
        sets[i]["w"].t(),
        scale_a=sets[i]["x_scale"],
        scale_b=sets[i]["w_scale"].reshape(1, -1),
        bias=sets[i]["bias_bfloat16"],
        out_dtype=torch.bfloat16,
    )


def semi_structured(sets: Sequence[Tensors]) -> Call:
    """PyTorch's 2:4 layer in float16, cuSPARSELt underneath."""
    import torch
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = False
    packed = [to_sparse_semi_structured(tensors["w_half"]) for tensors in sets]
    return lambda i: torch.nn.functional.linear(sets[i]["x_half"], packed[i], sets[i]["bias_half"])


def layer_norm(sets: Sequence[Tensors]) -> Call:
    """x + skip and a LayerNorm in float16, two kernels: nothing is quantized."""
    from torch.nn.functional import layer_norm

    def call(i: int) -> Any:
        total = sets[i]["x"] + sets[i]["skip"]
        return total, layer_norm(total, total.shape[-1:], sets[i]["gamma_half"], sets[i]["beta_half"])

    return call


def copy(sets: Sequence[Tensors]) -> Call:
    """x copied: the same reading, twice the writing of one-byte codes."""
    return lambda i: sets[i]["x"].clone()


def mat_mul_nbits(sets: Sequence[Tensors], n: int, k: int, block: int) -> ir.Model:
    """ONNX Runtime's own layer on 4-bit weights, the same chain for each set."""
    inputs, outputs, nodes = [], [], []
    for copy_number, tensors in enumerate(sets):
        names = ("x", "w", "w_scale")
        types = (ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.FLOAT16)
        shapes = ([tensors["x"].shape[0], k], [n, k // block, block // 2], [n * k // block])
        values = [
            ir.Value(name=f"{name}.{copy_number}", type=ir.TensorType(dtype), shape=ir.Shape(shape))
            for name, dtype, shape in zip(names, types, shapes, strict=True)
        ]
        node = ir.node("MatMulNBits", values, {"K": k, "N": n, "bits": 4, "block_size": block}, domain="com.microsoft")
        node.outputs[0].name = f"y.{copy_number}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        node.outputs[0].shape = ir.Shape([tensors["x"].shape[0], n])
        inputs += values
        outputs.append(node.outputs[0])
        nodes.append(node)
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports=opsets, name="benchmark")
    return ir.Model(graph, ir_version=10)
