"""Arrays of any library in and out of ONNX Runtime without copies, and on the device where they lie.

Going in, an array is an address: ONNX Runtime is told the type by the model. Coming out it is DLPack, or, for the
types that ONNX Runtime does not export (float8), plain bytes that the library reads as what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

import numpy as np

from qcompile.errors import DataError
from qcompile.runtime.ports import dtype_named, onnx_number

Array = Any  # numpy.ndarray, torch.Tensor, onnxruntime.OrtValue, or anything with __dlpack__

NO_ADAPTER: Mapping[str, Array] = MappingProxyType({})

_HOST = (1, 3)
"""Device types of DLPack that the CPU reads: memory, and memory pinned for CUDA."""

_CPU = ("cpu", 0)

_MODULES = {"jaxlib": "jax.numpy"}
"""Where `from_dlpack` is, of libraries whose arrays are defined elsewhere."""

_BYTES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
"""Types that ONNX Runtime does not export by DLPack."""

FOREIGN_TO_NUMPY = (*_BYTES, "bfloat16")
"""Types that `onnxruntime.InferenceSession.run` does not take from numpy, or give to it, as what they are."""


@dataclass(frozen=True)
class Memory:
    """Where an array lies.

    Attributes:
        device: "cpu" or "cuda", and its number.
        owner: what must live as long as the memory is read.
    """

    device: tuple[str, int]
    address: int
    shape: tuple[int, ...]
    owner: Any


def unwritten(shape: tuple[int, ...], dtype: str, device: tuple[str, int]) -> Array:
    """An OrtValue on a device, with whatever its memory holds."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, onnx_number(dtype), *device)


def memory(array: Array) -> Memory:
    """The array's memory, row after row without gaps; only an array that has gaps is copied."""
    import onnxruntime

    device = device_of(array)
    if is_torch(array):
        array = array.detach().contiguous()
        return Memory(device, array.data_ptr(), tuple(array.shape), array)
    if device[0] == "cpu" and not is_ort(array):
        array = np.ascontiguousarray(to_numpy(array))
        return Memory(device, array.ctypes.data, array.shape, array)
    value = array if is_ort(array) else onnxruntime.OrtValue.from_dlpack(array)
    return Memory(device, value.data_ptr(), tuple(value.shape()), value)


def on_device(array: Array) -> bool:
    """Whether the array lies in the memory of an accelerator."""
    return device_of(array) != _CPU


def device_of(array: Array) -> tuple[str, int]:
    """The device in whose memory the array lies, "cpu" or "cuda", and its number."""
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return _CPU
    if is_torch(array) and array.device.type == "cpu":
        return _CPU
    kind, number = array.__dlpack_device__()
    return _CPU if kind in _HOST else ("cuda", int(number))


def dtype_name(array: Array) -> str:
    """numpy's name of the element type."""
    if is_ort(array):
        return dtype_named(array.data_type())
    return _name(array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype)


def shape_of(array: Array) -> tuple[int, ...]:
    """The dimensions of the array."""
    if is_ort(array):
        return tuple(array.shape())
    return tuple(array.shape if hasattr(array, "shape") else np.shape(array))


def kind_of(array: Array) -> type:
    """The type that results are wanted in; numpy's for what no library made."""
    return type(array) if hasattr(array, "__dlpack__") else np.ndarray


def copied(array: Array) -> Array:
    """A copy in memory of its own."""
    return array.clone() if is_torch(array) else array.copy()


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """A numpy view of an array in the CPU's memory; an OrtValue that lies on a device is copied."""
    if isinstance(array, np.ndarray):
        return array
    if is_ort(array):
        values = np.asarray(array.numpy())  # a copy, where it lies on a device
        return values.view(_ml_dtype(dtype_name(array))) if dtype_name(array) in _BYTES else values
    if is_torch(array):
        return np.asarray(array.detach().numpy())
    return np.asarray(np.from_dlpack(array) if hasattr(array, "__dlpack__") else array)


def fetched(array: Array) -> np.ndarray[Any, Any]:
    """The array in the CPU's memory, copied if it lies elsewhere."""
    import onnxruntime

    if not on_device(array):
        return to_numpy(array)
    return np.asarray(to_numpy(array.cpu()) if is_torch(array) else onnxruntime.OrtValue.from_dlpack(array).numpy())


def from_numpy(result: Array, like: Array) -> Array:
    """`result` as the kind of array that `like` is; text stays numpy."""
    library = _library(kind_of(like))
    if library is np or result.dtype == object:
        return result
    if is_ort(like):
        return type(like).ortvalue_from_numpy(result)
    return library.from_numpy(result) if is_torch(like) else library.from_dlpack(result)


def from_ort(value: Any, kind: type, dtype: str) -> Array:
    """An array that shares the memory of an OrtValue.

    Args:
        kind: type of array, a library's or OrtValue itself.
        dtype: numpy's name of the element type.

    Raises:
        DataError: the library has no such element type.
    """
    if kind is type(value):
        return value
    library = _library(kind)
    if dtype in _BYTES or (library is np and dtype in FOREIGN_TO_NUMPY):
        return _from_bytes(value, library, dtype)
    array = library.from_dlpack(value)
    if dtype == "bool" and is_torch(array):  # DLPack carries flags as bytes
        array = array.view(library.bool)
    return array


def is_torch(array: Array) -> bool:
    """Whether it is a torch tensor, or something that a library derived from one."""
    return _library_name(type(array)) == "torch"


def is_ort(array: Array) -> bool:
    """Whether it is an OrtValue."""
    return _library_name(type(array)) == "onnxruntime"


def _from_bytes(value: Any, library: Any, dtype: str) -> Array:
    exported = _Unsigned(value)
    if library.__name__ == "torch":
        device, number = device_of(value)
        plain = (
            library.from_numpy(np.asarray(exported))
            if device == "cpu"
            else library.as_tensor(exported, device=f"{device}:{number}")
        )
        return plain.view(getattr(library, dtype))
    if library is np:
        return np.asarray(exported).view(_ml_dtype(dtype))
    raise DataError(f"{library.__name__} has no arrays of type {dtype}", hint="give torch tensors")


class _Unsigned:
    """The memory of an OrtValue as unsigned integers of the same width, by the protocols of numpy and of CUDA."""

    def __init__(self, value: Any) -> None:
        width = 2 if value.data_type() == "tensor(bfloat16)" else 1
        interface = {
            "shape": tuple(value.shape()),
            "typestr": f"{'<' if width > 1 else '|'}u{width}",
            "data": (value.data_ptr(), False),
            "version": 3,
        }
        self._value = value
        if value.device_name() == "cpu":
            self.__array_interface__ = interface
        else:
            self.__cuda_array_interface__ = interface


def _library(kind: type) -> Any:
    name = _library_name(kind)
    return np if issubclass(kind, np.ndarray | np.generic) else import_module(_MODULES.get(name, name))


def _library_name(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _ml_dtype(name: str) -> Any:
    return getattr(import_module("ml_dtypes"), name)


@cache
def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
