"""The same model four ways: float, what ONNX Runtime's own tool makes of it, and what qcompile makes of it.

- `ORT static`: quantize_static as its documentation advises: preprocessed, Q/DQ, uint8 activations, int8 weights per
  channel, min-max.
- `ORT tuned`: the same, restricted to Conv, MatMul and Gemm, as an engineer does when the default loses accuracy.
- `ORT dynamic`: quantize_dynamic with int8 weights.
- `qcompile`: the recipe int8-static, same samples.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.zoo.model import Sample, ZooModel

FLOAT, STATIC, TUNED, DYNAMIC, OURS = "float", "ORT static", "ORT tuned", "ORT dynamic", "qcompile"
VARIANTS = (FLOAT, STATIC, TUNED, DYNAMIC, OURS)


def build(model: ZooModel, folder: Path) -> dict[str, Path | str]:
    """Every variant of `model` as a file in `folder`, or why it could not be made."""
    samples = model.calibration(model.calibration_count)
    prepared = preprocess(model.path(), folder / "preprocessed.onnx")
    makers: dict[str, Callable[[Path], object]] = {
        STATIC: lambda out: quantize_static(prepared, out, samples),
        TUNED: lambda out: quantize_static(prepared, out, samples, only=("Conv", "MatMul", "Gemm")),
        DYNAMIC: lambda out: quantize_dynamic(prepared, out),
        OURS: lambda out: compile_ours(model.path(), out, samples),
    }
    files: dict[str, Path | str] = {FLOAT: model.path()}
    for name, make in makers.items():
        out = folder / f"{name.replace(' ', '-')}.onnx"
        try:
            make(out)
            files[name] = out
        except Exception as error:
            files[name] = f"{type(error).__name__}: {error}"
    return files


def compile_ours(source: Path, out: Path, samples: list[Sample]) -> None:
    """qcompile without its proofs: the file is the same."""
    import qcompile

    qcompile.compile(source, "int8-static", calibration=samples, output=out, overwrite=True, prove=False)


def preprocess(source: Path, out: Path) -> Path:
    """What ONNX Runtime's documentation asks for before quantization; its fallbacks where it fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    current = _with_per_channel_opset(source, out.with_name("upgraded.onnx"))
    for options in ({}, {"skip_symbolic_shape": True}):
        try:
            with contextlib.chdir(out.parent):  # it leaves files in the working folder
                quant_pre_process(current.resolve(), out.resolve(), **options)
            return out
        except Exception as error:
            print(f"  quant_pre_process({options}) failed: {type(error).__name__}")
    return Path(shutil.copy(current, out))


def quantize_static(source: Path, out: Path, samples: Iterable[Sample], only: tuple[str, ...] = ()) -> None:
    """onnxruntime.quantization.quantize_static; `samples` are read one at a time."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[Sample] = iter(samples)

        def get_next(self) -> Sample | None:
            return next(self.samples, None)

    options: dict[str, Any] = {"op_types_to_quantize": list(only)} if only else {}
    quantization.quantize_static(
        source,
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        **options,
    )


def quantize_dynamic(source: Path, out: Path) -> None:
    from onnxruntime import quantization

    quantization.quantize_dynamic(source, out, weight_type=quantization.QuantType.QInt8)


def _with_per_channel_opset(source: Path, out: Path) -> Path:
    """Below opset 13 there is no per-channel DequantizeLinear, and the tool would write an invalid graph."""
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) >= 13:
        return source
    onnx.save(version_converter.convert_version(model, 17), out)
    return out
