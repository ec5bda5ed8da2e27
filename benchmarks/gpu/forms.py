"""Every form in which a model is measured end to end on a GPU: how its file is made, and how it is run.

- `ORT fp32`: the model as it is. `ORT fp16`: ONNX Runtime's converter, for encoders after the fusions of its
  transformer tool. `ORT int4`: MatMulNBits in blocks of 32 on that file. All with inputs and outputs bound on the
  device.
- `TensorRT ...`: the same float16 file, and ONNX Runtime's static int8 with symmetric codes as TensorRT wants them;
  with the plugin of TensorRT-RTX where that is installed. An engine for each point, since ranges of shapes cost speed.
- `torch.compile fp16`: the same network, `mode="reduce-overhead"`, which replays CUDA graphs.
- qcompile's recipes under their own names through `qcompile.Session`, on tensors that lie on the device; on CUDA also
  with `cuda_graphs=True`.
- `plain run`: session.run of the fp16 file of qcompile with numpy arrays, nothing bound or captured: batch 1 only.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.cell import in_process
from benchmarks.gpu.workloads import WORKLOADS, Kind, Point, Workload
from benchmarks.variants import preprocess, runtime_version, sources
from tests.zoo.cache import cache
from tests.zoo.model import Sample

Runner = Literal["session", "captured session", "bound", "graph", "plain", "torch"]
FLOAT, HALF = "ORT fp32", "ORT fp16"
_SAMPLES = 16
_RECIPES: dict[Kind, tuple[str, ...]] = {
    "encoder": ("fp16", "int8-dynamic", "int8-smoothquant", "fp8-static"),
    "decoder": ("fp16", "int8-dynamic", "fp8-dynamic", "int4-rtn"),
    "images": ("fp16",),
}
_FOR_TENSORRT: dict[Kind, tuple[tuple[str, str], ...]] = {
    "encoder": (("int8-static", "tensorrt"), ("int8-static", "tensorrt-rtx"), ("fp8-static", "tensorrt-rtx")),
    "decoder": (("int4-rtn", "tensorrt-rtx"),),
    "images": (("int8-static", "tensorrt"), ("int8-static", "tensorrt-rtx")),
}
_NEED_SAMPLES = ("int8-smoothquant", "int8-static", "fp8-static")
_FILE = "model.onnx"


@dataclass(frozen=True)
class Form:
    """One contestant.

    Attributes:
        file: which of `FILES` it runs, or "RECIPE:TARGET"; empty where it needs none.
        only_batch_1: measured there alone.
    """

    name: str
    runner: Runner
    provider: str
    file: str = ""
    only_batch_1: bool = False

    @property
    def ours(self) -> bool:
        return self.runner in ("session", "captured session")

    @property
    def captures(self) -> bool:
        """Whether it needs CUDA graphs of ONNX Runtime."""
        return self.runner in ("captured session", "graph")

    def takes(self, point: Point) -> bool:
        return point.batch == 1 or not self.only_batch_1


def forms(kind: Kind) -> list[Form]:
    """The contestants of a kind of model, in the order of the tables."""
    found = [
        Form(FLOAT, "bound", "cuda", "float"),
        Form(HALF, "bound", "cuda", "half"),
        Form("ORT fp16, CUDA graph", "graph", "cuda", "half"),
    ]
    if kind == "decoder":
        found.append(Form("ORT int4", "bound", "cuda", "int4"))
    for title, provider in (("TensorRT", "tensorrt"), ("TensorRT-RTX", "tensorrt-rtx")):
        found.append(Form(f"{title} fp16", "bound", provider, "half"))
        if kind != "decoder":
            found.append(Form(f"{title} int8", "bound", provider, "int8"))
    found.append(Form("torch.compile fp16", "torch", "cuda"))
    for recipe in _RECIPES[kind]:
        found.append(Form(f"qcompile {recipe}", "session", "cuda", f"{recipe}:cuda"))
        found.append(Form(f"qcompile {recipe}, CUDA graph", "captured session", "cuda", f"{recipe}:cuda"))
    for recipe, provider in _FOR_TENSORRT[kind]:
        title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[provider]
        found.append(Form(f"qcompile {recipe}, {title}", "session", provider, f"{recipe}:tensorrt"))
    found.append(Form("qcompile fp16, plain run", "plain", "cuda", "fp16:cuda", only_batch_1=True))
    return found


def made(workload: Workload, file: str) -> dict[str, Any]:
    """The file of a form, made in a process of its own if need be: {"file"} or {"error"}."""
    if file == "float":
        return {"file": str(workload.source())}
    folder = cache() / "benchmarks" / "gpu-models" / workload.name / file.replace(":", "-")
    record, stamp = folder.with_name(folder.name + ".json"), f"{runtime_version()} {sources() if ':' in file else ''}"
    if record.is_file():
        known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if known["stamp"] == stamp and ("error" in known or Path(known["file"]).is_file()):
            return known
    record.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    known = in_process("benchmarks.gpu.forms", workload.name, file, str(folder)) | {"stamp": stamp}
    record.write_text(json.dumps(known), encoding="utf-8")
    return known


def make(workload: Workload, file: str, out: Path) -> None:
    """Write a file; weights may lie in others beside it."""
    recipe, _, target = file.partition(":")
    if target:
        _compiled(workload, recipe, target, out)
    else:
        FILES[file](workload, out)


def _compiled(workload: Workload, recipe: str, target: str, out: Path) -> None:
    import qcompile

    samples: Any = workload.samples(_SAMPLES) if recipe in _NEED_SAMPLES else None
    qcompile.compile(workload.source(), recipe, calibration=samples, target=target, output=out, prove=False)


def _half(workload: Workload, out: Path) -> None:
    import onnx
    from onnxruntime.transformers import float16, optimizer

    source = workload.source()
    if workload.kind == "encoder":
        model = optimizer.optimize_model(str(source), "bert", opt_level=0, use_gpu=True)
        model.convert_float_to_float16(keep_io_types=False)
        proto = model.model
    else:
        proto = float16.convert_float_to_float16(onnx.load(source), keep_io_types=False, disable_shape_infer=True)
    _save(proto, out)


def _int4(workload: Workload, out: Path) -> None:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as ort

    config = ort.DefaultWeightOnlyQuantConfig(32, True, bits=4)
    tool = ort.MatMulNBitsQuantizer(onnx.load(made(workload, "half")["file"]), algo_config=config)
    tool.process()
    _save(tool.model.model, out)


def _int8(workload: Workload, out: Path) -> None:
    """What ONNX Runtime's examples for TensorRT do: symmetric, biases in float, Q/DQ on the weights too."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter(workload.samples(_SAMPLES))

        def get_next(self) -> Sample | None:
            return next(self.samples, None)

    prepared = preprocess(workload.source(), out.with_name("preprocessed.onnx"))
    quantization.quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm", "Add"],
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "DedicatedQDQPair": True,
        },
    )
    prepared.unlink()


FILES: dict[str, Callable[[Workload, Path], None]] = {
    "half": _half,
    "int4": _int4,
    "int8": _int8,
}


def _save(proto: Any, out: Path) -> None:
    import onnx

    large = proto.ByteSize() > 2**30
    onnx.save(proto, out, save_as_external_data=large, location=f"{_FILE}.data" if large else None)


def _in_child(name: str, file: str, folder: str) -> None:
    final = Path(folder)
    try:
        with tempfile.TemporaryDirectory(dir=final.parent) as parent:
            unfinished = Path(parent) / final.name
            unfinished.mkdir()
            make(WORKLOADS[name], file, unfinished / _FILE)
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
        found = {"file": str(final / _FILE)}
    except Exception as error:  # whatever a tool dies of is the answer
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    print(json.dumps(found))


if __name__ == "__main__":
    _in_child(*sys.argv[1:])
