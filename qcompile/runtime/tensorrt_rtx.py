"""TensorRT for RTX as a plugin of ONNX Runtime: the second way to TensorRT, installed by pip, CUDA included.

A plugin is registered once in a process; then its devices can be given to sessions. Options have names of its own.

Sources: the package onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0, its README and tensorrt_rtx_provider_options.h, which
lists the compute capabilities too (`IsComputeCapabilitySupported`): Hopper is not among them.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Mapping
from typing import Any

from qcompile.errors import TargetError
from qcompile.runtime.gpu import Gpu, find_gpu, why_no_gpu

NAME = "NvTensorRTRTXExecutionProvider"
PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
_SHARED = ("device_id", "user_compute_stream", "enable_cuda_graph")
_registering = threading.Lock()


def installed() -> bool:
    return importlib.util.find_spec(_MODULE) is not None


def version() -> str:
    """The plugin's, which brings TensorRT-RTX with it."""
    return str(getattr(importlib.import_module(_MODULE), "__version__", ""))


def why_not_loaded(device: int = 0) -> str:
    """What is missing for the plugin, empty when nothing is."""
    if not installed():
        return f"its plugin is not installed (pip install {PACKAGE})"
    if missing := why_no_gpu():
        return missing
    gpu = find_gpu(device)
    if gpu is None:
        return f"there is no GPU {device}"
    return "" if _runs_on(gpu) else f"it has no kernels for {gpu}"


def add(options: Any, provider_options: Mapping[str, str]) -> None:
    """Let a session with these `onnxruntime.SessionOptions` run on the plugin's device `device_id`, then on the CPU.

    Raises:
        TargetError: the plugin does not load, or finds no such device.
    """
    import onnxruntime

    settings = {name: value for name, value in provider_options.items() if name in _SHARED or name.startswith("nv_")}
    if "user_compute_stream" in settings:
        settings["has_user_compute_stream"] = "1"
    device = int(settings.pop("device_id", "0"))
    _register()
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == NAME]
    if device >= len(devices):
        raise TargetError(f"{NAME} finds no GPU {device}")
    options.add_provider_for_devices([devices[device]], settings)


def _register() -> None:
    """Load the plugin, unless another session did."""
    import onnxruntime

    with _registering:
        if any(d.ep_name == NAME for d in onnxruntime.get_ep_devices()):
            return
        package = importlib.import_module(_MODULE)
        try:
            onnxruntime.register_execution_provider_library(NAME, package.get_library_path())
        except Exception as error:
            raise TargetError(f"{NAME} does not load: {str(error).rsplit('with error: ', 1)[-1].strip()}") from None


def _runs_on(gpu: Gpu) -> bool:
    return gpu.capability in ((8, 6), (8, 9)) or gpu.capability >= (12, 0)
