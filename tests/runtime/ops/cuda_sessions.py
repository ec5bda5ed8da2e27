"""As a program, on a stub of CUDA: sessions of the CUDA provider with the library that QCOMPILE_OPS names.

Prints what was seen as JSON: for each operator what is wrong with its results (empty: nothing), and the faults.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.compiler.operators import catalogue
from qcompile.runtime.providers import CUDA
from qcompile.runtime.session import Session
from tests.operators.library import options_with
from tests.operators.operands import CONSTANTS, attributes_of, operands
from tests.operators.reference import expected
from tests.operators.running import model_of, run, session
from tests.passes.harness import model_of as text_model
from tests.targets.cuda_tuning import measured

LIBRARY = Path(os.environ["QCOMPILE_OPS"])
OPERATORS = catalogue()


def model(name: str, k: int = 64, constant: bool = True) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """One node "it" and its operands, those that are no constants to be fed."""
    operator = OPERATORS[name]
    inputs = operands(operator, (2, 3), 8, k)
    fixed = {key: value for key, value in inputs.items() if constant and key in CONSTANTS}
    shapes = {key: value.shape for key, value in inputs.items() if key not in fixed}
    return model_of(operator, shapes, constants=fixed, attributes=attributes_of(operator)), inputs


def on_cuda(made: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that refuses to put a node elsewhere."""
    options = options_with(LIBRARY)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return session(made, options, [CUDA])


def wrong(name: str) -> str:
    made, inputs = model(name)
    fed = {i.name: inputs[i.name] for i in made.graph.input}
    try:
        results = run(on_cuda(made), fed)
        for output, right in expected(OPERATORS[name], inputs, attributes_of(OPERATORS[name])).items():
            right.check(results[output], output)
    except Exception as error:
        return str(error)
    return ""


def refusal(name: str, **changes: Any) -> str:
    """What a session says that cannot be made, or cannot run."""
    made, inputs = model(name, **changes)
    try:
        run(on_cuda(made), {i.name: inputs[i.name] for i in made.graph.input})
    except Exception as error:
        return str(error)
    return ""


def kernel_fault() -> str:
    os.environ["STAND_IN_FAULT"] = "the rows are too long"
    try:
        return refusal("LinearW8A8")
    finally:
        del os.environ["STAND_IN_FAULT"]


def unaligned() -> str:
    """What a session says of an input that starts within 16 bytes; memory of the stub's device is the host's."""
    made, inputs = model("QuantizeRows")
    memory = np.zeros(inputs["x"].size + 8, np.float32)
    start = -memory.ctypes.data % 16 // 4 + 1
    on = on_cuda(made)
    binding = on.io_binding()
    shape = list(inputs["x"].shape)
    binding.bind_input("x", "cuda", 0, np.float32, shape, memory.ctypes.data + 4 * start)
    for output in on.get_outputs():
        binding.bind_output(output.name, "cuda")
    try:
        on.run_with_iobinding(binding)
    except Exception as error:
        return str(error)
    return ""


def described() -> str:
    """What a Session says that finds everything itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model("QuantizeRowsFp16")[0], path)
        return Session(path, ["cuda"]).describe()


def captured() -> list[str]:
    """The providers of a session that is asked to capture CUDA graphs."""
    options = options_with(LIBRARY)
    made = session(model("LinearW8A8BiasGelu")[0], options, [(CUDA, {"enable_cuda_graph": "1"})])  # type: ignore[list-item]
    return list(made.get_providers())


def tuned() -> dict[str, dict[str, float | None]] | str:
    """What autotuning measures of a linear layer on rows of codes."""
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[4,32] x) => (float[4,32] y) { y = MatMul (x, w) }'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(text_model(text, {"w": np.eye(32, dtype=np.float32)}), path)
        return measured(path, "int8-dynamic", Path(folder) / "times.json")


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "operators": {name: wrong(name) for name in OPERATORS},
                "kernel": kernel_fault(),
                "unaligned": unaligned(),
                "unprepared": refusal("Linear24Fp16", k=68),
                "fed weight": refusal("Linear24W8A8", constant=False),
                "described": described(),
                "captured": captured(),
                "tuned": tuned(),
            }
        )
    )
