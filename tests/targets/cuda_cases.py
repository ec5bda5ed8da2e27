"""One-operator models for the CUDA table. As a program: places each one and prints where it landed, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

Model = onnx.ModelProto
_TYPES = {
    "int8": T.INT8, "uint8": T.UINT8, "int16": T.INT16, "int32": T.INT32, "int4": T.INT4, "uint4": T.UINT4,
    "fp8-e4m3": T.FLOAT8E4M3FN, "fp8-e5m2": T.FLOAT8E5M2,
}  # fmt: skip
_OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]


def _one_node(
    op_type: str, inputs: Sequence[tuple[str, int, list[int]]], outputs: Sequence[int], domain: str = "", **options: Any
) -> Model:
    """A model of one operator; inputs whose name starts with '=' are initializers filled with ones."""
    names = [name.removeprefix("=") for name, _, _ in inputs]
    made = [f"y{i}" for i in range(len(outputs))]
    given = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs if n and not n.startswith("=")]
    constants = [helper.make_tensor(n[1:], t, s, np.ones(int(np.prod(s)))) for n, t, s in inputs if n.startswith("=")]
    node = helper.make_node(op_type, names, made, name="it", domain=domain, **options)
    results = [helper.make_tensor_value_info(n, t, None) for n, t in zip(made, outputs, strict=True)]
    graph = helper.make_graph([node], "g", given, results, constants)
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=10)


def _quantize(kind: str, scale: list[int], data: list[int] | None = None, **options: Any) -> Model:
    zero = ("=z", _TYPES[kind], scale)
    return _one_node(
        "QuantizeLinear", [("x", T.FLOAT, data or [4, 8]), ("=s", T.FLOAT, scale), zero], [_TYPES[kind]], **options
    )


def _dequantize(kind: str, scale: list[int], data: list[int] | None = None, of: int = T.FLOAT, **options: Any) -> Model:
    inputs = [("x", _TYPES[kind], data or [4, 8]), ("=s", of, scale)]
    return _one_node("DequantizeLinear", inputs, [of], **options)


_ABSENT = [("", T.FLOAT, [])] * 2


def _cases() -> dict[tuple[str, str], Callable[[], Model]]:
    found: dict[tuple[str, str], Callable[[], Model]] = {}
    for kind in ("int8", "uint8", "int4", "uint4", "fp8-e4m3", "fp8-e5m2", "int16"):
        found["QuantizeLinear", kind] = lambda k=kind: _quantize(k, [])
        found["DequantizeLinear", kind] = lambda k=kind: _dequantize(k, [])
    found["QuantizeLinear", "int8 per axis"] = lambda: _quantize("int8", [8], axis=1)
    found["DequantizeLinear", "int8 per axis"] = lambda: _dequantize("int8", [8], axis=1)
    found["DequantizeLinear", "int32"] = lambda: _dequantize("int32", [])
    for kind in ("int4", "int8"):
        found["DequantizeLinear", f"{kind} blocked"] = lambda k=kind: _dequantize(
            k, [2, 8], [32, 8], axis=0, block_size=16
        )
    found["DequantizeLinear", "int8, bfloat16 scale"] = lambda: _dequantize("int8", [], of=T.BFLOAT16)
    for left in ("int8", "uint8"):
        found["MatMulInteger", f"{left} x int8"] = lambda k=left: _one_node(
            "MatMulInteger", [("a", _TYPES[k], [4, 16]), ("b", T.INT8, [16, 8])], [T.INT32]
        )
    found["ConvInteger", "uint8 x int8"] = lambda: _one_node(
        "ConvInteger", [("a", T.UINT8, [1, 4, 8, 8]), ("b", T.INT8, [8, 4, 3, 3])], [T.INT32]
    )
    found["QLinearMatMul", "int8 x int8"] = lambda: _one_node(
        "QLinearMatMul", [*_codes("a", T.INT8, [4, 16]), *_codes("b", T.INT8, [16, 8]), *_params("y", T.INT8)], [T.INT8]
    )
    found["QLinearConv", "uint8 x int8"] = lambda: _one_node(
        "QLinearConv",
        [*_codes("a", T.UINT8, [1, 4, 8, 8]), *_codes("b", T.INT8, [8, 4, 3, 3]), *_params("y", T.UINT8)],
        [T.UINT8],
    )
    found["DynamicQuantizeLinear", "uint8"] = lambda: _one_node(
        "DynamicQuantizeLinear", [("x", T.FLOAT, [4, 8])], [T.UINT8, T.FLOAT, T.UINT8]
    )
    found["QGemm", "uint8 x int8"] = lambda: _one_node(
        "QGemm",
        [*_codes("a", T.UINT8, [4, 16]), *_codes("b", T.INT8, [16, 8])],
        [T.FLOAT],
        "com.microsoft",
    )
    found["DynamicQuantizeMatMul", "int8"] = lambda: _one_node(
        "DynamicQuantizeMatMul",
        [("a", T.FLOAT, [4, 16]), ("b", T.INT8, [16, 8]), ("=s", T.FLOAT, [8])],
        [T.FLOAT],
        "com.microsoft",
    )
    found["MatMulIntegerToFloat", "uint8 x int8"] = lambda: _one_node(
        "MatMulIntegerToFloat",
        [("a", T.UINT8, [4, 16]), ("b", T.INT8, [16, 8]), ("=s", T.FLOAT, []), ("=t", T.FLOAT, [8])],
        [T.FLOAT],
        "com.microsoft",
    )
    for bits, block, extra in (
        (4, 32, "none"),
        (4, 128, "zero points"),
        (2, 64, "none"),
        (8, 32, "bias"),
        (8, 256, "none"),
    ):
        more = "" if extra == "none" else f", {extra}"
        found["MatMulNBits", f"int{bits} block {block}{more}"] = lambda b=bits, s=block, e=extra: _n_bits(b, s, e)
    found["MatMulBnb4", "nf4 block 64"] = lambda: _one_node(
        "MatMulBnb4",
        [("a", T.FLOAT, [4, 128]), ("=b", T.UINT8, [4096]), ("=s", T.FLOAT, [128])],
        [T.FLOAT],
        "com.microsoft",
        K=128,
        N=64,
        block_size=64,
        quant_type=1,
        transB=1,
    )
    for bits in (2, 4, 8):
        found["GatherBlockQuantized", f"int{bits} block 32"] = lambda b=bits: _one_node(
            "GatherBlockQuantized",
            [("=t", T.UINT8, [9, 64 * b // 8]), ("i", T.INT64, [3]), ("=s", T.FLOAT, [9, 2])],
            [T.FLOAT],
            "com.microsoft",
            bits=b,
            block_size=32,
            gather_axis=0,
            quantize_axis=1,
        )
    for block in (32, 128):
        found["MatMulBlockQuantizedFp8Weight", f"block {block}"] = lambda b=block: _one_node(
            "MatMulBlockQuantizedFp8Weight",
            [
                ("a", T.FLOAT16, [4, 256]),
                ("=b", T.FLOAT8E4M3FN, [64, 256]),
                ("=s", T.FLOAT, [64, 256 // b]),
                _ABSENT[0],
                ("=c", T.FLOAT16, [64]),
            ],
            [T.FLOAT16],
            "com.microsoft",
            block_size=b,
        )
    found["MatMulBlockQuantizedFp4Weight", "block 16"] = lambda: _one_node(
        "MatMulBlockQuantizedFp4Weight",
        [
            ("a", T.FLOAT16, [4, 256]),
            ("=b", T.UINT8, [64, 128]),
            ("=s", T.UINT8, [64, 16]),
            ("=t", T.FLOAT, []),
            _ABSENT[0],
            ("=c", T.FLOAT16, [64]),
        ],
        [T.FLOAT16],
        "com.microsoft",
        block_size=16,
    )
    found["Gather", "int8 rows"] = lambda: _one_node("Gather", [("=t", T.INT8, [9, 8]), ("i", T.INT64, [3])], [T.INT8])
    found["Cast", "int8 to float"] = lambda: _one_node("Cast", [("x", T.INT8, [4, 8])], [T.FLOAT], to=T.FLOAT)
    return found


def _n_bits(bits: int, block: int, extra: str) -> Model:
    blocks = 512 // block
    return _one_node(
        "MatMulNBits",
        [
            ("a", T.FLOAT, [1, 512]),
            ("=b", T.UINT8, [64, blocks, block * bits // 8]),
            ("=s", T.FLOAT, [64 * blocks]),
            ("=z", T.UINT8, [64 * blocks * bits // 8]) if extra == "zero points" else _ABSENT[0],
            _ABSENT[1],
            *([("=c", T.FLOAT, [64])] if extra == "bias" else []),
        ],
        [T.FLOAT],
        "com.microsoft",
        K=512,
        N=64,
        bits=bits,
        block_size=block,
    )


def _params(name: str, kind: int) -> list[tuple[str, int, list[int]]]:
    return [(f"={name}_scale", T.FLOAT, []), (f"={name}_zero", kind, [])]


def _codes(name: str, kind: int, shape: list[int]) -> list[tuple[str, int, list[int]]]:
    return [(name, kind, shape), *_params(name, kind)]


CASES = _cases()


def landing(model: Model) -> str:
    """The provider that took the node called 'it', or what went wrong."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    except Exception as error:
        return f"the session fails: {str(error)[:200]}"
    if "CUDAExecutionProvider" not in session.get_providers():
        return "the CUDA provider does not load"
    taken = [p.ep_name for p in session.get_provider_graph_assignment_info() for n in p.get_nodes() if n.name == "it"]
    try:
        _run(session)
    except Exception:
        return f"{taken[0]} takes it and throws"
    return str(taken[0])


def _run(session: Any) -> None:
    """One run on zeros, where numpy has the element types."""
    kinds = {"float": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8, "int64": np.int64}
    kinds = {f"tensor({name})": kind for name, kind in kinds.items()}
    inputs = session.get_inputs()
    if all(value.type in kinds for value in (*inputs, *session.get_outputs())):
        session.run(None, {i.name: np.zeros(i.shape, kinds[i.type]) for i in inputs})


def executed(model: Model) -> list[str]:
    """Operators of the optimized graph on the CUDA provider."""
    from pathlib import Path

    from qcompile.compiler.verification.optimized import optimize

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return [node.op_type for node in optimize(path, "CUDAExecutionProvider").nodes]


def statistics() -> dict[str, list[str]]:
    """Operators of the observed copy of a convolution, by the provider that took them."""
    import onnx_ir as ir
    import onnxruntime as ort

    from qcompile.compiler.histogram import HISTOGRAM
    from qcompile.compiler.mask import Mask
    from qcompile.compiler.observation import observe
    from qcompile.compiler.statistics import RANGE, Channels

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="it", kernel_shape=[1])],
        "g",
        [value("x", T.FLOAT, ["batch", 4, "length"]), value("mask", T.INT64, ["batch", "length"])],
        [value("y", T.FLOAT, ["batch", 4, "length"])],
        [helper.make_tensor("w", T.FLOAT, [4, 4, 1], np.ones(16))],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=_OPSETS, ir_version=10))
    mask = Mask(model.graph.inputs[1], ("batch", "length"))
    wanted = {"x": [RANGE, HISTOGRAM], "y": [RANGE, Channels(1), HISTOGRAM]}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(
        ir.to_proto(observe(model, wanted, mask=mask, on_device=True).model).SerializeToString(),
        options,
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    found: dict[str, list[str]] = {}
    for taken in session.get_provider_graph_assignment_info():
        found.setdefault(taken.ep_name, []).extend(node.op_type for node in taken.get_nodes())
    return found


def calibration() -> dict[str, Any]:
    """Where the outputs of a run of samples lie that lay on the device, and what their shapes are."""
    import onnxruntime as ort

    from qcompile.runtime.calibration import calibration_provider, read_samples
    from qcompile.runtime.device import Device

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    model = _one_node("Mul", [("x", T.FLOAT, ["rows", 4]), ("=s", T.FLOAT, [4])], [T.FLOAT]).SerializeToString()
    samples = [{"x": ort.OrtValue.ortvalue_from_numpy(np.ones((n, 4), np.float32), "cuda", 0)} for n in (2, 3)]
    seen = read_samples(
        model, samples, providers, lambda outputs: [(o.device_name(), o.shape()) for o in outputs], device=Device.CUDA
    )
    return {"provider": calibration_provider(providers), "outputs": list(seen)}


def bodies() -> dict[str, list[str]]:
    """For each operator of the domain `qcompile`: what of its inlined body does not run on the device."""
    import onnxruntime as ort

    from qcompile.compiler.operators import catalogue
    from tests.operators.operands import CONSTANTS, attributes_of, operands
    from tests.operators.running import model_of, run

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, operator in catalogue().items():
            values = operands(operator, (2, 3), 16, 64)
            constants = {n: v for n, v in values.items() if n in CONSTANTS}
            feeds = {n: v for n, v in values.items() if n not in CONSTANTS}
            shapes = {n: v.shape for n, v in feeds.items()}
            model = model_of(operator, shapes, constants=constants, attributes=attributes_of(operator))
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            options.optimized_model_filepath = f"{folder}/{name}.onnx"
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
            )
            assigned = session.get_provider_graph_assignment_info()
            away = [n.op_type for p in assigned for n in p.get_nodes() if p.ep_name != "CUDAExecutionProvider"]
            optimized = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
            found[name] = away + [op_type for op_type in optimized if op_type.startswith("Memcpy")]
            if "ReduceMax" not in optimized:  # which is cuDNN's, and the stub has none
                run(session, feeds)
    return found


if __name__ == "__main__":
    from tests.verification.qdq_models import convolutions

    found: dict[str, Any] = {f"{op_type}|{case}": landing(make()) for (op_type, case), make in CASES.items()}
    found["convolutions"] = executed(convolutions(signed=True))
    found["statistics"] = statistics()
    found["bodies"] = bodies()
    found["calibration"] = calibration()
    json.dump(found, sys.stdout)
