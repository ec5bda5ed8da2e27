"""How ONNX Runtime gets an artifact into a TensorRT engine: its own provider, or the plugin for TensorRT-RTX.

The provider that comes with ONNX Runtime builds weakly typed networks: float16 and int8 are used where an option
allows them, whatever types the graph has, and there is no option for FP8 and INT4. The plugin builds strongly typed
ones: every tensor has the type that the graph gives it. An artifact is written for both: what shall be float16 is
float16 in the graph, and the options allow what the graph holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from qcompile.compiler.graph import graphs
from qcompile.compiler.targets.ways import Option, Way
from qcompile.compiler.weight_pattern import has_sparse_weights

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
TENSORRT_RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"

_STRONG = {
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.INT4: "INT4",
}
"""Types that an engine computes with only where its network is strongly typed, or a flag of the builder is set."""


def _types(model: ir.Model) -> Iterator[ir.DataType | None]:
    """Element types of everything that `model` holds."""
    for graph in graphs(model):
        yield from (value.dtype for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            yield from (value.dtype for value in node.outputs)


def _holds(*wanted: ir.DataType) -> Callable[[ir.Model], bool]:
    return lambda model: any(dtype in wanted for dtype in _types(model))


def _weakly_typed(model: ir.Model) -> str:
    found = [name for dtype, name in _STRONG.items() if _holds(dtype)(model)]
    if not found:
        return ""
    return f"it has no option that lets an engine compute with {' and '.join(found)} codes"


WAYS = (
    Way(
        provider=TENSORRT_PROVIDER,
        obstacle=_weakly_typed,
        options=(
            Option("trt_fp16_enable", _holds(ir.DataType.FLOAT16), "float16 tensors become float32"),
            Option("trt_bf16_enable", _holds(ir.DataType.BFLOAT16), "bfloat16 tensors become float32"),
            Option("trt_int8_enable", _holds(ir.DataType.INT8), "the builder refuses a graph with int8 Q/DQ"),
            Option(
                "trt_layer_norm_fp32_fallback",
                _holds(ir.DataType.FLOAT16),
                "the squares and means of a norm may run in float16 although the graph keeps them float32",
            ),
            Option("trt_sparsity_enable", has_sparse_weights, "weights with the 2:4 pattern run as dense ones"),
        ),
        evidence="the provider of ONNX Runtime 1.31.1, read in its library: it creates networks with flags 0 and sets "
        "the builder flags FP16, BF16, INT8 and SPARSE_WEIGHTS, each by an option, and none for FP8 or INT4",
    ),
    Way(
        provider=TENSORRT_RTX_PROVIDER,
        evidence="its builder (1.7.1) makes engines for compute capability 8.9 of graphs with int8, FP8 and int4 "
        "codes, whose layers read them; its package lists compute capability 8.6, 8.9 and 12.0. Not run by us",
    ),
)
