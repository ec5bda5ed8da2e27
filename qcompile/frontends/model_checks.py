"""Checks of a parsed model: versions, operators, and whether it is a float model."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.errors import ModelError, UsageError
from qcompile.runtime.model_header import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    import onnx_ir as ir

_QUANTIZED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "MatMulBnb4",
        "MatMulFpQ4", "GatherBlockQuantized", "GemmFloat8", "QGemm", "QAttention", "QMoE", "QEmbedLayerNormalization",
        "QuantizeBFP", "DequantizeBFP", "QuantizeWithOrder", "DequantizeWithOrder", "MulInteger", "ReduceSumInteger",
        "MatMulInteger16", "ConvIntegerToFloat", "MatMulNBitsQkv", "MatMulNBitsMlp",
        "MatMulBlockQuantizedFp8Weight", "MatMulBlockQuantizedFp4Weight",
    }
)  # fmt: skip
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_QUANTIZED_FAMILIES = ("QLinear", "QOrdered")
_OPTIMIZED_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")


def check_versions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse IR and opset versions that the installed ONNX Runtime does not open."""
    import onnxruntime

    opsets = {o.domain: o.version for o in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx"))
    if opset is None and any(n.domain in ("", "ai.onnx") for n in proto.graph.node):
        raise ModelError(
            "the model does not say which opset it uses: the file is truncated or damaged",
            where=str(path),
            hint="export or download it again",
        )
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    if not _opens(proto.ir_version, 7):
        raise ModelError(
            f"the model has IR version {proto.ir_version}, which {runtime} does not accept",
            where=str(path),
            hint="upgrade onnxruntime, or save the model with an older onnx (IR version 10 goes with opset 21)",
        )
    if opset is not None and opset > 1 and not _opens(3, opset):
        raise ModelError(
            f"the model has opset {opset}, which {runtime} does not accept",
            where=str(path),
            hint="upgrade onnxruntime, or export the model with opset 21",
        )


@cache
def _opens(ir_version: int, opset: int) -> bool:
    """Whether ONNX Runtime opens a one-node model of these versions: asked, not remembered."""
    import onnx
    import onnxruntime

    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [onnx.helper.make_value_info("x", kind)],
        [onnx.helper.make_value_info("y", kind)],
    )
    opset_import = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, ir_version=ir_version, opset_imports=opset_import)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def check_operators(model: ir.Model, path: Path) -> None:
    """Refuse operators that neither ONNX, nor ONNX Runtime, nor the model itself defines; names the node."""
    functions = {identifier[:2] for identifier in model.functions}
    for node, opsets in _nodes(model):
        if (node.domain, node.op_type) not in functions:
            _check_operator(node, opsets, f"{path}, node '{node.name or _output(node)}'")


def _check_operator(node: ir.Node, opsets: dict[str, int], where: str) -> None:
    import onnx

    domain, name = node.domain, node.op_type
    if domain in _OPTIMIZED_DOMAINS:
        raise ModelError(
            f"operator {domain}::{name} is internal to ONNX Runtime: this model was saved after optimization",
            where=where,
            hint="compile the original model",
        )
    version = node.version or opsets.get(domain)
    names = _operators(domain)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ModelError(
            f"unknown operator {domain or 'ai.onnx'}::{name}",
            where=where,
            hint=f"did you mean '{close[0]}'?"
            if close
            else "custom operators can be compiled when the model carries their function body",
        )
    if version is None:
        raise ModelError(f"operator {domain}::{name}: the model does not import the domain '{domain}'", where=where)
    if domain in _onnx_domains() and onnx.defs.has(name, domain):
        try:
            schema = onnx.defs.get_schema(name, version, domain)
        except onnx.defs.SchemaError:
            raise ModelError(
                f"operator {name} does not exist in opset {version}",
                where=where,
                hint=f"it came with opset {_first_version(name, domain)}; export the model with that or a newer one",
            ) from None
        if schema.deprecated:
            raise ModelError(
                f"operator {name} was removed from ONNX in opset {schema.since_version}; the model has {version}",
                where=where,
                hint="export the model again with a current exporter",
            )


@cache
def _onnx_domains() -> frozenset[str]:
    import onnx

    return frozenset(s.domain for s in onnx.defs.get_all_schemas())


@cache
def _operators(domain: str) -> frozenset[str]:
    """Names that ONNX or the installed ONNX Runtime defines in `domain`."""
    import onnx
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}
    return frozenset(standard | {s.name for s in get_all_operator_schema() if s.domain == domain})


@cache
def _first_version(name: str, domain: str) -> int:
    import onnx

    schemas = onnx.defs.get_all_schemas_with_history()
    return min(s.since_version for s in schemas if (s.name, s.domain) == (name, domain))


def check_not_quantized(model: ir.Model, path: Path) -> None:
    """Refuse a model that is quantized already, in whole or in part; names the first such node. One that qcompile only
    edited in float, as it merges adapters or prunes, is a float model still."""
    said = json.loads(model.metadata_props.get(MANIFEST, "null"))
    if said is not None and not said.get("float"):
        raise ModelError(
            "the model was compiled by qcompile already", where=str(path), hint="compile the float model it was made of"
        )
    for node, _ in _nodes(model):
        if node.op_type in _QUANTIZED or node.op_type.startswith(_QUANTIZED_FAMILIES):
            raise ModelError(
                f"the model is quantized already: it holds {node.op_type}",
                where=f"{path}, node '{node.name or _output(node)}'",
                hint="compile the float model it was made of",
            )


def check_takes_no_adapters(model: ir.Model, path: Path) -> None:
    """Refuse a model with inputs for adapters: passes would make constants of them."""
    from qcompile.compiler.lora.ports import modules_of

    if modules := modules_of([str(value.name) for value in model.graph.inputs]):
        raise ModelError(
            f"the model takes adapters as inputs, for {len(modules)} layers",
            where=str(path),
            hint="compile the model it was made of: qcompile lora export MODEL ADAPTER... --recipe NAME",
        )


def check_weights(model: ir.Model, path: Path) -> None:
    """Refuse NaN and infinity in what a weighted operator reads, and NaN in a table; elsewhere an infinity may be a
    mask."""
    import numpy as np

    from qcompile.compiler.graph import constant

    for node, _ in _nodes(model):
        if node.op_type not in _WEIGHTED and node.op_type != "Gather":
            continue
        for value in node.inputs:
            array = constant(value)
            if array is None or array.dtype.kind not in "fV":
                continue
            with np.errstate(all="ignore"):
                finite = bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())
            kind = "" if finite else "NaN" if np.isnan(array).any() else "infinity"
            if kind == "NaN" or (kind and node.op_type in _WEIGHTED):
                raise ModelError(
                    f"weight '{value.name if value else ''}' holds {kind}",
                    where=f"{path}, node '{node.name or _output(node)}'",
                    hint="the model was damaged, or its training diverged",
                )


def check_runs(model: ir.Model, path: Path, provider: str) -> None:
    """Refuse a model that ONNX Runtime has no kernels for: there would be nothing to compare with.

    Weights are left out at first, since opening a session is then quick.
    """
    import onnxruntime

    from qcompile.compiler.description import describe
    from qcompile.runtime.providers import open_session, provider_options

    for source in (None, path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            proto = describe(model)[0].SerializeToString() if source is None else source
            open_session(proto, options, provider, provider_options(provider, 0, None))
        except ModelError as error:
            if source is not None:
                raise ModelError(
                    error.what,
                    where=str(path),
                    hint=f"the model must run on {provider} as it is; exported in float32 it most likely does",
                ) from None
        else:
            return


def _nodes(model: ir.Model) -> Iterator[tuple[ir.Node, dict[str, int]]]:
    """Every node, in bodies and functions too, with the opset versions that hold for it."""
    for node in model.graph.all_nodes():
        yield node, model.graph.opset_imports
    for function in model.functions.values():
        for node in function.all_nodes():
            yield node, function.opset_imports


def _output(node: ir.Node) -> str:
    return next((v.name for v in node.outputs if v.name), node.op_type)


def check_comparable(model: ir.Model, float_model: ir.Model, path: Path) -> None:
    """Refuse a float model, read from `path`, whose inputs and outputs are called otherwise than those of `model`."""
    wanted, given = _interface(model), _interface(float_model)
    if wanted != given:
        raise UsageError(
            f"the two models cannot be compared: the model maps {wanted}, not {given}",
            where=str(path),
            hint="give the float model that it was made of",
        )


def _interface(model: ir.Model) -> str:
    inputs = (str(v.name) for v in model.graph.inputs if not v.is_initializer())
    return f"{', '.join(inputs)} -> {', '.join(str(v.name) for v in model.graph.outputs)}"
