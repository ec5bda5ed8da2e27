"""Time and noise of the operators that quantize their inputs as they run: the costs of DYNAMIC and BLOCKS.

    python -m benchmarks.dynamic_kernels

Linear layers of 1, 16 and 128 rows; one column of the input is 20 times the others, as in transformers. Recurrent
layers of one batch. Times in microseconds, one thread, best of all rounds; noise against float in dB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.record import save, table
from qcompile.compiler.formats import INT8
from qcompile.compiler.params import params_from_range, quantize, weight_range
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.specs import Granularity, PerBlock, PerChannel, QuantSpec
from qcompile.passes.lower.packing import packed_blocks

Array = npt.NDArray[Any]
_ROUNDS, _RUNS = 6, 10
_LINEAR = ((384, 1536), (1536, 384), (576, 1536))
_RECURRENT = ((128, 128, 625), (120, 96, 40), (512, 512, 50))


def main() -> None:
    rows: list[dict[str, Any]] = []
    for depth, columns in _LINEAR:
        weight = normal(depth, columns)
        models = {"float": model("MatMul", ["w"], {"w": weight}), "dynamic": _dynamic(weight)}
        models |= {f"blocks of {size}": _blocks(weight, size) for size in (32, 64, 128)}
        for count in (1, 16, 128):
            x = normal(count, depth)
            x[:, 3] *= 20
            rows.append({"layer": f"{count} x {depth} x {columns}"} | measured(models, {"x": x}))
            print("  ", rows[-1], flush=True)
    for inputs, hidden, steps in _RECURRENT:
        models = _recurrent(inputs, hidden)
        rows.append(
            {"layer": f"LSTM {steps} x {inputs} x {hidden}"} | measured(models, {"x": normal(steps, 1, inputs)})
        )
        print("  ", rows[-1], flush=True)
    print(save("dynamic-kernels", rows, {"threads": 1, "runs": _ROUNDS * _RUNS}))
    header = ["float", "dynamic", "blocks of 32", "blocks of 64", "blocks of 128"]
    print(table(["Layer", *header], [[r["layer"], *(str(r.get(h, "")) for h in header)] for r in rows]))


def measured(models: dict[str, ModelProto], feeds: dict[str, Array]) -> dict[str, str]:
    """Time and noise of each model, all timed in turns."""
    import time

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    cpu = ["CPUExecutionProvider"]
    sessions = {n: ort.InferenceSession(m.SerializeToString(), options, providers=cpu) for n, m in models.items()}
    outputs = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            for _ in range(_RUNS):
                start = time.perf_counter_ns()
                session.run(None, feeds)
                best[name] = min(best[name], time.perf_counter_ns() - start)
    found = {"float": f"{best['float'] / 1e3:.1f}"}
    for name in list(models)[1:]:
        noise = np.mean(np.square(outputs[name] - outputs["float"], dtype=np.float64))
        sqnr = 10 * np.log10(np.mean(np.square(outputs["float"], dtype=np.float64)) / noise)
        found[name] = f"{best[name] / 1e3:.1f} ({sqnr:.0f} dB)"
    return found


def _dynamic(weight: Array) -> ModelProto:
    coded = _coded(weight, PerChannel(1))
    constants = {"w": coded.codes, "s": coded.params.scale}
    return model("DynamicQuantizeMatMul", ["w", "s"], constants)


def _blocks(weight: Array, size: int) -> ModelProto:
    blocks = packed_blocks(_coded(weight, PerBlock(0, size)))
    options = {"K": weight.shape[0], "N": weight.shape[1], "bits": 8, "block_size": size, "accuracy_level": 4}
    return model("MatMulNBits", ["w", "s"], {"w": blocks.codes, "s": blocks.scale}, **options)


def _recurrent(inputs: int, hidden: int) -> dict[str, ModelProto]:
    shapes = {"w": (1, 4 * hidden, inputs), "r": (1, 4 * hidden, hidden)}
    weights = {name: normal(*shape) / np.float32(np.sqrt(shape[2])) for name, shape in shapes.items()}
    constants: dict[str, Array] = {}
    for name, weight in weights.items():
        coded = _coded(weight, PerBlock(2, weight.shape[2]))
        scale = coded.params.scale[..., 0]
        constants |= {
            name: coded.codes.swapaxes(1, 2).copy(),
            f"{name}s": scale,
            f"{name}z": np.zeros(scale.shape, np.int8),
        }
    order = ["w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    return {
        "float": model("LSTM", ["w", "r"], weights, hidden_size=hidden),
        "dynamic": model("DynamicQuantizeLSTM", order, constants, hidden_size=hidden),
    }


def _coded(weight: Array, grain: Granularity) -> QuantizedWeight:
    spec = QuantSpec(INT8, grain, symmetric=True)
    params = params_from_range(spec, *weight_range(weight, spec))
    return QuantizedWeight(params, quantize(weight, params).astype(np.int8))


def model(op_type: str, constants: list[str], arrays: dict[str, Array], **options: Any) -> ModelProto:
    domain = "" if op_type in ("MatMul", "LSTM") else "com.microsoft"
    node = helper.make_node(op_type, ["x", *constants], ["y"], domain=domain, **options)
    graph = helper.make_graph(
        [node],
        "kernel",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


if __name__ == "__main__":
    main()
