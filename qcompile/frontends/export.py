"""Engines in a file: a compiled model is opened where it will run, and its engines are written out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qcompile.compiler.artifact import check_output, model_bytes, writing
from qcompile.compiler.inputs import model_inputs
from qcompile.errors import TargetError, UsageError
from qcompile.frontends.model_file import load_model
from qcompile.runtime.context_model import ShapeRange, context_options, profile_options
from qcompile.runtime.gpu import find_gpu
from qcompile.runtime.model_header import MANIFEST, manifest
from qcompile.runtime.providers import BUILDERS, ENGINES, candidates, open_session, provider_options
from qcompile.runtime.settings import Settings

_LARGEST_FILE = 1 << 30
"""Bytes of a model above which engines lie beside the file: one file of protobuf ends at 2 GiB."""


def export(
    model: str | Path,
    output: str | Path | None = None,
    *,
    shapes: Mapping[str, str] | None = None,
    provider: str | None = None,
    device: int = 0,
    overwrite: bool = False,
) -> Path:
    """Build the engines of a model for this machine's GPU and write them to a file, which `qcompile.load` opens.

    Args:
        output: where to write; left out, MODEL.engine.onnx beside the model.
        shapes: input name -> "8x128", or "1x16:8x128:32x512" for least, usual and greatest; needed for each input
            with free dimensions.
        provider: "tensorrt" or "tensorrt-rtx"; left out, the first that loads.
        device: number of the GPU.

    Returns:
        The file. It serves on GPUs of this kind, with these versions of TensorRT and driver.

    Raises:
        UsageError: a shape is missing or does not fit.
        TargetError: no provider here builds engines for the model.
        OutputError: the file exists, or cannot be written.
    """
    source = Path(model)
    destination = Path(output) if output is not None else source.with_name(f"{source.stem}.engine.onnx")
    check_output(destination, overwrite)
    ranges = _ranges(source, shapes or {})
    lost = []
    said = (manifest(source) or {}) | {"target": "tensorrt"}
    for candidate in candidates([provider] if provider else None, said):
        if candidate.provider not in BUILDERS:
            continue
        try:
            return _export(source, destination, ranges, candidate.provider, device)
        except TargetError as error:
            lost.append(error.what)
    if not lost:
        raise UsageError(f"provider '{provider}' builds no engines", hint="tensorrt and tensorrt-rtx do")
    raise TargetError("no engine can be built here: " + "; ".join(lost), where=str(source))


def _ranges(source: Path, shapes: Mapping[str, str]) -> dict[str, ShapeRange]:
    inputs = {spec.name: spec for spec in model_inputs(load_model(source)) if spec.required}
    for name in shapes:
        if name not in inputs:
            raise UsageError(f"the model has no input '{name}'", hint="its inputs are " + ", ".join(inputs))
    found = {name: ShapeRange.parse(text) for name, text in shapes.items()}
    for name, spec in inputs.items():
        shape = [size if isinstance(size, int) else None for size in spec.shape or ()]
        if name in found and not found[name].fits(shape):
            raise UsageError(f"{name}={shapes[name]} does not fit the model, which has {spec}")
        if name not in found and None in shape:
            example = "x".join(str(size or 1) for size in shape)
            raise UsageError(f"{spec} has free dimensions", hint=f"say which shape is meant: --shape {name}={example}")
    return found


def _export(source: Path, destination: Path, ranges: Mapping[str, ShapeRange], provider: str, device: int) -> Path:
    with writing(destination), tempfile.TemporaryDirectory(dir=destination.parent, prefix=".engines.") as folder:
        made = Path(folder) / destination.name
        entries, wanted = context_options(provider, made, model_bytes(source) <= _LARGEST_FILE)
        options = Settings(device=device).session_options()
        for entry, value in entries.items():
            options.add_session_config_entry(entry, value)
        settings = provider_options(provider, device, None) | profile_options(provider, ranges) | wanted
        open_session(source, options, provider, settings)
        if not made.is_file():
            raise TargetError(f"{provider} wrote no engines: a part of the model does not run on it")
        _sign(made, source, provider, device)
        for file in Path(folder).iterdir():
            file.replace(destination.with_name(file.name))
    return destination


def _sign(made: Path, source: Path, provider: str, device: int) -> None:
    """Give the context model the manifest of the model, and say what it holds."""
    import onnx

    proto = onnx.load(made, load_external_data=False)
    signed = (manifest(source) or {}) | {"target": "tensorrt", ENGINES: provider, "gpu": str(find_gpu(device))}
    onnx.helper.set_model_props(
        proto,
        {
            **{entry.key: entry.value for entry in proto.metadata_props},
            MANIFEST: json.dumps(signed, sort_keys=True, separators=(",", ":")),
        },
    )
    made.write_bytes(proto.SerializeToString())
