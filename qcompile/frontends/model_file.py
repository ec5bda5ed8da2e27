"""Reading a model file: every fault a file can have is found here, before any work.

External data stays memory-mapped when it is large; its paths must stay in the model's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.errors import ModelError
from qcompile.runtime import model_header

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_SMALL = 1 << 30
"""External data below this size is read into memory, so that the model can be handed on as bytes."""

_SIGNATURES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the model itself", "run `git lfs pull`"),
    b"PK\x03\x04": ("a zip archive (a PyTorch checkpoint?)", "export the model with torch.onnx.export"),
    b"GGUF": ("a GGUF file", "qcompile reads ONNX models"),
    b"\x89HDF": ("an HDF5 file (Keras?)", "convert it with tf2onnx"),
    b"<": ("text (HTML or XML)", "was the download a web page?"),
}


def load_float_model(path: Path) -> ir.Model:
    """Load a model that can be compiled.

    Raises:
        ModelError: as `load_model`, and when the model is already quantized, takes adapters, or its weights are not
            finite.
    """
    from qcompile.frontends.model_checks import check_not_quantized, check_takes_no_adapters, check_weights

    model = load_model(path)
    check_not_quantized(model, path)
    check_takes_no_adapters(model, path)
    check_weights(model, path)
    return model


def load_model(path: Path) -> ir.Model:
    """Load any ONNX model that the installed ONNX Runtime can open.

    Raises:
        ModelError: no such file, not an ONNX model, truncated, empty, external data missing or
            outside the model's folder, unknown operator, or newer than ONNX Runtime accepts.
    """
    import onnx_ir as ir

    from qcompile.frontends.external_data import check_external_data, external_bytes, resolve_external_data
    from qcompile.frontends.model_checks import check_operators, check_versions

    proto = _parse(path)
    if not proto.graph.node:
        raise ModelError("the model has no nodes", where=str(path), hint="there is nothing to compile")
    if not proto.graph.output:
        raise ModelError("the model has no outputs", where=str(path), hint="there is nothing to compute")
    check_versions(proto, path)
    check_external_data(proto, path)
    resolve_external_data(proto, path)
    model = ir.from_proto(proto)
    check_operators(model, path)
    if external_bytes(proto) < _SMALL:
        ir.external_data.load_to_model(model)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.onnx"))
        hint = f"it holds {', '.join(inside[:3])}" if inside else "give the .onnx file itself"
        raise ModelError("this is a folder, not a model file", where=str(path), hint=hint)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError("no such file", where=str(path), hint=_similar(path)) from None
    except OSError as error:
        raise ModelError(f"the model cannot be read: {error.strerror}", where=str(path)) from None
    _check_wire(path, data[:64])
    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError:
        raise ModelError(
            "not an ONNX model, or a damaged one: the graph in it is not valid protobuf",
            where=str(path),
            hint="export or download it again",
        ) from None
    if not proto.HasField("graph"):
        raise ModelError(
            "the file ends before the graph: it is truncated", where=str(path), hint="export or download it again"
        )
    return proto


def _check_wire(path: Path, start: bytes) -> None:
    if not start:
        raise ModelError("the file is empty", where=str(path), hint="export or download it again")
    for signature, (what, hint) in _SIGNATURES.items():
        if start.startswith(signature):
            raise ModelError(f"not an ONNX model: this is {what}", where=str(path), hint=hint)
    try:
        with path.open("rb") as file:
            for _ in model_header.fields(file):
                pass
    except model_header.Truncated as error:
        raise ModelError(
            f"the file is truncated: at least {error.missing} bytes are missing",
            where=str(path),
            hint="export or download it again",
        ) from None
    except model_header.NotAModel:
        raise ModelError("not an ONNX model (not a protobuf of that kind)", where=str(path)) from None


def _similar(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"did you mean {path.with_name(close[0])}?" if close else ""
