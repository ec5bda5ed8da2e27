"""NVIDIA's own builder, asked what it makes of a model: whether it takes it, and in which precision each layer runs.

TensorRT for RTX builds engines ahead of time, for a compute capability that is named, so it needs neither a GPU nor
CUDA: the two wheels of `PACKAGES`, of 95 MB, are all. Kernels are picked when an engine is loaded; what a layer reads
and writes is settled here. Where there is a GPU, and TensorRT's own Python package, that builder is asked for what its
provider takes, with the flags that ONNX Runtime's provider would give it.

The builder runs in a process of its own, since it may end one that asks for what it did not foresee.

    python -m qcompile.runtime.engine_builder MODULE MODEL '{"input": [1, 128]}' '{"trt_int8_enable": "1"}'
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
from qcompile.runtime.engine_layers import EngineLayer, from_json, from_log
from qcompile.runtime.gpu import why_no_gpu
from qcompile.runtime.providers import TENSORRT

PACKAGES = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
"""What pip has to install, both in one version."""

_MODULE, _ON_GPU = "tensorrt_rtx_bindings", "tensorrt"

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


_FLAGS = {"trt_fp16_enable": "FP16", "trt_bf16_enable": "BF16", "trt_int8_enable": "INT8"}
"""Options of ONNX Runtime's provider and the builder's flags; TensorRT-RTX has none, types are those of the graph."""


def why_no_builder(provider: str = TENSORRT) -> str:
    """What is missing here to build engines for a provider, empty when nothing is."""
    if _module(provider) == _MODULE and importlib.util.find_spec(_MODULE) is None:
        return f"TensorRT's builder is not installed (pip install {' '.join(PACKAGES)})"
    return ""


def _module(provider: str = TENSORRT) -> str:
    """The Python package of the builder to ask; TensorRT-RTX's stands in for that of TensorRT."""
    on_gpu = provider == TENSORRT and importlib.util.find_spec(_ON_GPU) is not None and not why_no_gpu()
    return _ON_GPU if on_gpu else _MODULE


def build(
    model: Path,
    shapes: Mapping[str, Sequence[int]] | None = None,
    options: Mapping[str, str] | None = None,
    provider: str = TENSORRT,
) -> Built:
    """Build an engine for `model`, which is thrown away.

    Args:
        shapes: input name -> the shape it is built for; free dimensions of others are UNKNOWN_SIZE.
        options: those that ONNX Runtime's provider would be given.
        provider: the one that is to run it.

    Raises:
        TargetError: there is no builder here, or it ended.
        ModelError: it takes every node and yet builds nothing.
    """
    if missing := why_no_builder(provider):
        raise TargetError(missing)
    wanted = json.dumps({name: list(shape) for name, shape in (shapes or {}).items()})
    command = [
        sys.executable,
        "-m",
        __name__,
        _module(provider),
        str(model.resolve()),
        wanted,
        json.dumps(dict(options or {})),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.rsplit("\n", 2)[-2])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TargetError(f"TensorRT's builder ended: {last}", where=str(model)) from None
    if found["fault"]:
        raise ModelError(f"TensorRT builds no engine: {found['fault']}", where=str(model))
    refused = tuple(Refusal(**refusal) for refusal in found["refused"])
    layers = from_json(found["layers"]) if found["layers"].startswith("{") else from_log(found["layers"])
    return Built(found["builder"], tuple(layers), refused, found["size"])


def _build(
    model: str, shapes: Mapping[str, Sequence[int]], options: Mapping[str, str] | None = None, module: str = _MODULE
) -> dict[str, Any]:
    """`build`, in this process, as data."""
    trt, ahead = importlib.import_module(module), module == _MODULE
    name = (
        f"TensorRT-RTX {trt.__version__} for compute capability {CAPABILITY}"
        if ahead
        else f"TensorRT {trt.__version__}"
    )
    found: dict[str, Any] = {"builder": name, "layers": "", "refused": [], "size": 0, "fault": ""}
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
    if ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{CAPABILITY.replace('.', '')}"), 0)
    for flag in (flag for option, flag in _FLAGS.items() if not ahead and (options or {}).get(option) == "1"):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if (options or {}).get("trt_sparsity_enable") == "1":
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
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
    found |= {"layers": said[-1], "size": engine.nbytes}
    if not ahead:
        inspector = trt.Runtime(logger).deserialize_cuda_engine(engine).create_engine_inspector()
        found["layers"] = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(_build(sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[1])))
