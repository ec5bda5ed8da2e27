"""Arrays of any library in and out of ONNX Runtime, by DLPack: without copies, and on the device where they lie."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from qcompile.runtime.ports import dtype_named

Array = Any  # numpy.ndarray, torch.Tensor, or anything with __dlpack__

_CPU = (1, 3)
"""Device types of DLPack that the CPU reads: memory, and memory pinned for CUDA."""


def on_device(array: Array) -> bool:
    """Whether the array lies in the memory of an accelerator."""
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] not in _CPU


def device_number(array: Array) -> int:
    """Number of the device in whose memory the array lies."""
    return int(array.__dlpack_device__()[1])


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """A numpy view of an array in the CPU's memory."""
    if isinstance(array, np.ndarray):
        return array
    if _is_torch(array):
        array = array.detach()
    if _is_ort(array):
        return np.asarray(array.numpy())
    return np.asarray(np.from_dlpack(array) if hasattr(array, "__dlpack__") else array)


def from_numpy(result: Array, like: Array) -> Array:
    """`result` as the kind of array that `like` is; text stays numpy."""
    if result.dtype == object or isinstance(like, np.ndarray | np.generic) or not hasattr(like, "__dlpack__"):
        return result
    return to_ort(result) if _is_ort(like) else _library(type(like)).from_dlpack(result)


def to_ort(array: Array) -> Any:
    """An OrtValue that shares the array's memory."""
    import onnxruntime

    if _is_ort(array):
        return array
    if _is_torch(array):
        array = array.detach().contiguous()
        if dtype_name(array) == "bool":
            array = _Flags(array)
    return onnxruntime.OrtValue.from_dlpack(array)


def from_ort(value: Any, kind: type) -> Array:
    """An array of type `kind` that shares the memory of the OrtValue `value`."""
    if kind is type(value):
        return value
    array = _library(kind).from_dlpack(value)
    if value.data_type() == "tensor(bool)" and _is_torch(array):  # DLPack carries flags as bytes
        import torch

        return array.view(torch.bool)
    return array


def dtype_name(array: Array) -> str:
    """numpy's name of the element type."""
    if _is_ort(array):
        return dtype_named(array.data_type())
    return str(array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype).removeprefix("torch.")


def shape_of(array: Array) -> tuple[int, ...]:
    """The dimensions of the array."""
    return tuple(array.shape() if _is_ort(array) else np.shape(array))


def wait_for(kind: type) -> None:
    """Wait until the library has computed what it was asked for: ONNX Runtime runs on a stream of its own."""
    if kind.__module__.partition(".")[0] == "torch":
        import torch

        torch.cuda.current_stream().synchronize()


class _Flags:
    """A torch tensor of flags, handed over as bytes under the name that ONNX Runtime looks for."""

    dtype = np.dtype(bool)

    def __init__(self, flags: Array) -> None:
        import torch

        self._bytes = flags.view(torch.uint8)

    def __dlpack__(self) -> Any:
        return self._bytes.__dlpack__()


def _is_torch(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "torch"


def _is_ort(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "onnxruntime"


def _library(kind: type) -> Any:
    return import_module(kind.__module__.partition(".")[0])
