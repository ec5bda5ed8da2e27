"""Reading an ONNX file to look at it: lenient where compiling is strict.

External data is not read and may be missing, operators may be unknown, the model may already be
quantized. What is no ONNX model is an error all the same.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from qcompile.errors import ModelError


def read_structure(path: Path) -> ir.Model:
    """The model at `path`; tensors in external files are left there.

    Raises:
        ModelError: no such file, not an ONNX model, or a damaged one.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise ModelError("not an ONNX model, or a damaged one", where=str(path)) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    if not proto.HasField("graph"):
        raise ModelError("there is no graph in the file: it is empty or truncated", where=str(path))
    try:
        model = ir.from_proto(proto)
    except Exception as raised:  # the library names no base of its errors, and any of them means a damaged file
        deepest: BaseException = raised
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        reason = (str(deepest).splitlines() or [type(deepest).__name__])[0]
        raise ModelError(f"the graph in the file is damaged: {reason}", where=str(path)) from None
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def stays_in_folder(tensor: ir.TensorProtocol) -> bool:
    """False for external data whose location leaves the folder of its model, or that is not there.

    A model file is untrusted; nothing outside its folder is read for it.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return True
    base = Path(tensor.base_dir).resolve()
    target = (base / tensor.location).resolve()
    return target.is_relative_to(base) and target.is_file()
