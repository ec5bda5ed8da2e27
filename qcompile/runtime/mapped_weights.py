"""Weights that a session reads where they lie, in the files of its model.

ONNX Runtime maps external data itself, but privately, which counts against `ulimit -d`, and packs a copy of every
matrix for its kernels. Handed over as values of a shared map, weights count as nothing; without packing no copy is
made either, and a model runs that is larger than memory.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

UNPACKED = {"session.disable_prepacking": "1"}
"""Session options with which kernels read the weights themselves."""

_LARGE = 1 << 16
"""Bytes; smaller tensors may be shapes, which ONNX Runtime wants to see while it optimizes."""

_LARGEST_GRAPH = 64 << 20
"""Bytes of a model file without its external data; a larger one holds weights itself."""


def find_weights(folder: Path, options: Any) -> None:
    """Tell the session that `options` opens from bytes where the files of its external weights lie."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))


def share(model: onnx.ModelProto, folder: Path, options: Any) -> list[Any]:
    """Hand the large external weights of `model`, whose files lie in `folder`, to the session that `options` opens.

    Returns:
        What must live as long as the session.
    """
    import onnxruntime

    find_weights(folder, options)
    values = []
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL and _is_readable(tensor):
            array = mapped(tensor, folder)
            values.append(onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type))
            options.add_initializer(tensor.name, values[-1])
    return values


def with_shared_weights(path: Path, options: Any) -> tuple[bytes | Path, list[Any]]:
    """What to open the session of the model at `path` from, and what must live as long as it."""
    import onnx

    if path.stat().st_size > _LARGEST_GRAPH:
        return path, []
    model = onnx.load(path, load_external_data=False)
    values = share(model, path.parent, options)
    return (model.SerializeToString(), values) if values else (path, [])


def mapped(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """An external tensor as a view of its file."""
    import onnx

    found = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    file, offset = folder / found["location"], int(found.get("offset", 0))
    return np.asarray(np.memmap(file, dtype, "r", offset, tuple(tensor.dims)))


def _is_readable(tensor: onnx.TensorProto) -> bool:
    """Large, and stored as numpy holds it: whole bytes for each element, at an address that suits it."""
    import onnx

    T = onnx.TensorProto
    if tensor.data_type in (T.INT4, T.UINT4, T.INT2, T.UINT2, T.FLOAT4E2M1, T.STRING):
        return False
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    offset = next((int(entry.value) for entry in tensor.external_data if entry.key == "offset"), 0)
    return math.prod(tensor.dims) * size >= _LARGE and offset % size == 0
