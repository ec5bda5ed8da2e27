"""NVIDIA's own builder, asked what it makes of a model: whether it takes it, and in which precision each layer runs.

TensorRT for RTX builds engines ahead of time, for a compute capability that is named, so it needs neither a GPU nor
CUDA: the two wheels of `PACKAGES`, of 95 MB, are all. Kernels are picked when an engine is loaded; what a layer reads
and writes is settled here.

The builder runs in a process of its own, since it may end one that asks for what it did not foresee.

    python -m qcompile.runtime.engine_builder MODEL '{"input": [1, 128]}'
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError, TargetError
from qcompile.runtime.engine_layers import EngineLayer, from_log

PACKAGES = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
"""What pip has to install, both in one version."""

_MODULE = "tensorrt_rtx_bindings"

CAPABILITY = "8.9"
"""Ada: the first that multiplies FP8, and the newest before Blackwell. The builder has no Hopper."""

UNKNOWN_SIZE = 64
"""What a free dimension is taken for when nobody says."""


@dataclass(frozen=True)
class Refusal:
    """A node that the builder does not take.

    Attributes:
        unsupported: it has no such operator, or not with these types, so that ONNX Runtime gives the node to the
            next provider; otherwise the node breaks a rule.
    """

    node: str
    reason: str
    unsupported: bool


@dataclass(frozen=True)
class Built:
    """What the builder made of a model.

    Attributes:
        builder: which one, and for what.
        layers: the engine's; none where nodes are refused.
        size: bytes of the engine.
    """

    builder: str
    layers: tuple[EngineLayer, ...]
    refused: tuple[Refusal, ...]
    size: int


def why_no_builder() -> str:
    """What is missing here to build engines ahead of time, empty when nothing is."""
    if importlib.util.find_spec(_MODULE) is None:
        return f"TensorRT's builder is not installed (pip install {' '.join(PACKAGES)})"
    return ""


def build(model: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Built:
    """Build an engine for `model`, which is thrown away.

    Args:
        shapes: input name -> the shape it is built for; free dimensions of others are UNKNOWN_SIZE.

    Raises:
        TargetError: there is no builder here, or it ended.
        ModelError: it takes every node and yet builds nothing.
    """
    if missing := why_no_builder():
        raise TargetError(missing)
    wanted = json.dumps({name: list(shape) for name, shape in (shapes or {}).items()})
    command = [sys.executable, "-m", __name__, str(model.resolve()), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.rsplit("\n", 2)[-2])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TargetError(f"TensorRT's builder ended: {last}", where=str(model)) from None
    if found["fault"]:
        raise ModelError(f"TensorRT builds no engine: {found['fault']}", where=str(model))
    refused = tuple(Refusal(**refusal) for refusal in found["refused"])
    return Built(found["builder"], tuple(from_log(found["layers"])), refused, found["size"])


def _build(model: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """`build`, in this process, as data."""
    trt = importlib.import_module(_MODULE)
    major, minor = CAPABILITY.split(".")
    found: dict[str, Any] = {"builder": f"TensorRT-RTX {trt.__version__} for compute capability {CAPABILITY}"}
    found |= {"layers": "", "refused": [], "size": 0, "fault": ""}
    said, faults = [""], [""]

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                faults.append(message)
            elif message.startswith("Layers:"):
                said.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        found["refused"] = [
            {"node": e.node_name(), "reason": e.desc(), "unsupported": e.code().name.startswith("UNSUPPORTED")}
            for e in errors
        ]
        return found if errors else found | {"fault": faults[-1]}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), 0)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        shape = shapes.get(tensor.name) or [UNKNOWN_SIZE if size < 0 else size for size in tensor.shape]
        if tensor.is_shape_tensor:
            values = [UNKNOWN_SIZE] * max(1, *shape)
            profile.set_shape_input(tensor.name, values, values, values)
        else:
            profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return found | {"fault": faults[-1] or "it gives no reason"}
    return found | {"layers": said[-1], "size": engine.nbytes}


if __name__ == "__main__":
    print("\n" + json.dumps(_build(sys.argv[1], json.loads(sys.argv[2]))))
