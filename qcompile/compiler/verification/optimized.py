"""The graph that ONNX Runtime really executes: what is left of an artifact after its own optimizations."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from qcompile.compiler.scratch import scratch_folder
from qcompile.runtime.mapped_weights import UNPACKED
from qcompile.runtime.providers import CPU, TENSORRT, open_session, provider_options

_CODES = {
    onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4,
    onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2,
}  # fmt: skip
MOVES = {  # operators that hand values on, or some of them, as they are
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity", "MaxPool", "Expand", "Resize",
    "ReorderInput", "ReorderOutput", "DepthToSpace", "SpaceToDepth", "Split", "Gather",
}  # fmt: skip
_RENAMED = re.compile(
    r"(_token_\d+|_nchwc|_nhwc|/MatMulAddFusion|/GatherSliceToSplitFusion|/MatmulTransposeFusion/?|/MatMulScaleFusion)/?$"
)

_INLINED = "_inlfunc_"


@dataclass
class OptimizedGraph:
    """All nodes of the optimized model, bodies of control flow included.

    Attributes:
        nodes: in the order of execution.
        producers: value name -> the node that makes it.
        types: value name -> ONNX element type, as far as it is known.
        providers: node of the artifact -> provider it was assigned to, before fusion.
        callers: node that came out of a function's body -> the call of the function in the artifact.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    providers: dict[str, str] = field(default_factory=dict)
    callers: dict[str, str] = field(default_factory=dict)

    def computes_on_codes(self, node: onnx.NodeProto) -> bool:
        """Whether the node is a low-precision kernel: it reads codes and is no conversion."""
        conversion = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        return not conversion and any(self.types.get(name) in _CODES for name in node.input)

    def by_origin(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes by the name that they, or the call whose body they are of, have in the artifact."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            name = original_name(node.name)
            found.setdefault(self.callers.get(name, name), []).append(node)
        return found

    def makers(self, value: str) -> Iterator[onnx.NodeProto]:
        """The producer of `value` and, through nodes that only move it, those before it."""
        node = self.producers.get(value)
        while node is not None:
            yield node
            node = self.producers.get(node.input[0]) if node.op_type in MOVES and node.input else None


def original_name(name: str) -> str:
    """A node's name (or, for layout rewrites, its output's name) before the runtime renamed it."""
    while (shorter := _RENAMED.sub("", name)) != name:
        name = shorter
    return name


def optimize(artifact: Path, provider: str) -> OptimizedGraph:
    """Load `artifact` as ONNX Runtime would run it on `provider`, and read the graph it made.

    Raises:
        TargetError: the provider does not load on this machine.
        ModelError: ONNX Runtime refuses the artifact.
    """
    import onnxruntime as ort

    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graph, session = OptimizedGraph(), None
    if provider == TENSORRT:  # an engine cannot be written as a graph
        session = open_session(artifact, options, provider, provider_options(provider, 0, None))
    else:
        session = _run_and_read(artifact, provider, options, graph)
    for part in session.get_provider_graph_assignment_info():
        graph.providers.update((node.name, part.ep_name) for node in part.get_nodes())
    _infer_codes(graph)
    graph.callers = _callers(artifact, CPU if provider == TENSORRT else provider)
    return graph


def _options(level: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    for entry, value in UNPACKED.items():
        options.add_session_config_entry(entry, value)
    return options


def _run_and_read(artifact: Path, provider: str, options: Any, graph: OptimizedGraph) -> Any:
    """Open a session that writes its graph to a file, and collect that; returns the session."""
    with tempfile.TemporaryDirectory(prefix="qcompile-", dir=scratch_folder()) as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        session = open_session(artifact, options, provider, provider_options(provider, 0, None))
        _collect(onnx.load(path, load_external_data=False).graph, graph)
    return session


def _callers(artifact: Path, provider: str) -> dict[str, str]:
    """Which nodes a call became: where the runtime has no kernel for it, it inlines the body under names of
    its own, before any optimization. They lead from the call's outputs back to its inputs."""
    import onnxruntime as ort

    model = onnx.load(artifact, load_external_data=False)
    functions = {(f.domain, f.name) for f in model.functions}
    if not functions:
        return {}
    written, inlined = OptimizedGraph(), OptimizedGraph()
    _collect(model.graph, written)
    _run_and_read(artifact, provider, _options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL), inlined)
    found: dict[str, str] = {}
    for call in written.nodes:
        if (call.domain, call.op_type) in functions:
            waiting, known = list(call.output), {*call.input, ""}
            while waiting:
                value = waiting.pop()
                node = inlined.producers.get(value) if value not in known else None
                known.add(value)
                if node is not None and _INLINED in node.name:  # a Cast may stand between the call and its input
                    found[node.name] = call.name
                    waiting += node.input
            if not any(name in inlined.producers for name in call.output):
                found |= dict.fromkeys(_body_of(call, written, inlined), call.name)
    return found


def _body_of(call: onnx.NodeProto, written: OptimizedGraph, inlined: OptimizedGraph) -> Iterator[str]:
    """The nodes of a body whose results are gone, as Casts to half and back are even without optimizations: known by
    the prefix of the one that reads what only this call reads, such as its weight."""
    readers = Counter(name for node in written.nodes for name in node.input)
    own = {name for name in call.input if readers[name] == 1}
    prefix = re.compile(rf"{_INLINED}{re.escape(call.op_type)}_(?:token_\d+_)?")
    starts = {m[0] for n in inlined.nodes if own & set(n.input) and (m := prefix.match(n.name))}
    yield from (n.name for n in inlined.nodes if (m := prefix.match(n.name)) and m[0] in starts)


def _collect(proto: onnx.GraphProto, graph: OptimizedGraph) -> None:
    for value in (*proto.input, *proto.value_info, *proto.output):
        if value.type.HasField("tensor_type"):
            graph.types[value.name] = value.type.tensor_type.elem_type
    graph.types.update((i.name, i.data_type) for i in proto.initializer)
    for node in proto.node:
        graph.nodes.append(node)
        graph.producers.update((name, node) for name in node.output if name)
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _collect(body, graph)


def _infer_codes(graph: OptimizedGraph) -> None:
    """Element types of values that the runtime writes without: made by conversions and kernels, kept by moves."""
    for node in graph.nodes:
        made = _made_type(node, [graph.types.get(name, 0) for name in node.input])
        graph.types.update((name, made) for name in node.output if not graph.types.get(name))


def _made_type(node: onnx.NodeProto, inputs: list[int]) -> int:
    """Element type of a node's outputs, 0 when it is not known to be codes."""
    if node.op_type == "QuantizeLinear":
        return inputs[2] if len(inputs) > 2 else onnx.TensorProto.UINT8
    if node.op_type == "DynamicQuantizeLinear":
        return onnx.TensorProto.UINT8
    if node.op_type == "QGemm":  # float output without the output's zero point
        return inputs[8] if len(inputs) > 8 else 0
    if node.op_type.startswith("QLinear"):
        return next((t for t in inputs if t in _CODES), 0)
    return inputs[0] if node.op_type in MOVES and inputs else 0
