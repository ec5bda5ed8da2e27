"""As a program: how ONNX Runtime places compiled models on CUDA, as JSON. Arguments: paths of models."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.runtime.ops import kernels

_PROVIDER = "CUDAExecutionProvider"
_DIMENSIONS = {"batch": 1, "length": 16, "B": 1, "S": 16, "P": 8, "T": 24}
"""What the free dimensions of the models become in copies of static shape."""


def placed(path: Path, *, static: bool = False) -> dict[str, Any]:
    """How one model is placed: `nodes`, which the runtime executes, and `elsewhere`, operators of the artifact that are
    not on the device. With `static`, all dimensions are fixed and a CUDA graph is asked for; ONNX Runtime refuses
    that where anything else than the arithmetic of shapes is not on the device.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    kernels.choose(path, _PROVIDER).register(options)
    if static:
        for name, size in _DIMENSIONS.items():
            options.add_free_dimension_override_by_name(name, size)
    provider = (_PROVIDER, {"enable_cuda_graph": "1"} if static else {})
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = ort.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
        optimized = onnx.load(options.optimized_model_filepath)
    parts = session.get_provider_graph_assignment_info()
    return {
        "nodes": [f"{node.domain}::{node.op_type}".removeprefix("::") for node in optimized.graph.node],
        "elsewhere": sorted({n.op_type for part in parts for n in part.get_nodes() if part.ep_name != _PROVIDER}),
    }


def proved(path: Path) -> list[Any]:
    """Whether the proof of dispatch holds, and what it says."""
    proof = prove_dispatch(path, target_named("cuda")).proof
    return [proof.passed, proof.detail]


if __name__ == "__main__":
    found = {
        path.name: {"free": placed(path), "static": placed(path, static=True), "proof": proved(path)}
        for path in map(Path, sys.argv[1:])
    }
    json.dump(found, sys.stdout)
