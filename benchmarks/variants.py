"""Every form in which a model of the zoo is measured, and how its file is made.

- `float`: the model as it is.
- `ORT static`: quantize_static as its documentation advises: preprocessed, Q/DQ, uint8 activations, int8 weights per
  channel, min-max. `ORT tuned`: the same, restricted to Conv, MatMul and Gemm, as an engineer does when the default
  loses accuracy. `ORT dynamic`: quantize_dynamic with int8 weights.
- The peers of benchmarks/peers, each as its documentation says, on the model that ORT's tool is given: preprocessed,
  with an opset that Q/DQ needs (from opset 12 NNCF makes a recognizer that reads nothing, and does not say so).
- qcompile's recipes under their own names, with their defaults.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS, Peer
from tests.zoo.model import Sample

FLOAT = "float"
_NEED_NO_SAMPLES = ("int8-dynamic", "int8-zero-shot", "fp8-dynamic")
OF_LANGUAGE = (
    *("int4-rtn", "int4-gptq", "int4-awq", "int4-accurate", "int8-weight-only", "nf4", "nvfp4", "fp8-weight-only"),
    *("llm-int8", "kv-int8"),
)
"""Recipes for language models, which benchmarks.language measures."""
TARGETS = {"fp8-static": "tensorrt", "fp8-dynamic": "cuda"}
"""Recipes that are not for the target `cpu`; their files run on the CPU provider all the same, only not faster."""


@dataclass(frozen=True)
class Variant:
    """One form of a model.

    Attributes:
        kind: "float", "ORT", "peer" or "recipe".
        make: writes the file from the float file and a folder of samples; seconds, without imports where that matters.
        stamp: what decides the bytes of the file besides model and samples, as text.
        entries: session options without which the file loses its meaning.
        timed: whether its speed on the CPU provider says something.
    """

    name: str
    kind: str
    make: Callable[[Path, Path, Path], float]
    stamp: Callable[[], str]
    entries: dict[str, str] = field(default_factory=dict)
    timed: bool = True


@cache
def variants() -> dict[str, Variant]:
    """All of them, in the order of the tables."""
    from qcompile.frontends.builtin_recipes import recipe_names

    found = [Variant(FLOAT, "float", _linked, str)]
    for name, make in (("ORT static", _ort_static), ("ORT tuned", _ort_tuned), ("ORT dynamic", _ort_dynamic)):
        found.append(Variant(name, "ORT", make, partial(_ort_stamp, make)))
    for peer in PEERS.values():
        found += [_peer(peer, title) for title in peer.presets]
    found += [_recipe(name) for name in recipe_names() if name not in OF_LANGUAGE]
    return {variant.name: variant for variant in found}


def read(folder: Path) -> Iterator[Sample]:
    """The samples in a folder of .npz files, one at a time."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            yield {name: arrays[name] for name in arrays.files}


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


def _linked(model: Path, samples: Path, out: Path) -> float:
    out.symlink_to(model)
    return 0.0


def _ort_static(model: Path, samples: Path, out: Path, only: tuple[str, ...] = ()) -> float:
    prepared = preprocess(model, out.with_name("preprocessed.onnx"))
    start = time.perf_counter()
    quantize_static(prepared, out, read(samples), only)
    return time.perf_counter() - start


def _ort_tuned(model: Path, samples: Path, out: Path) -> float:
    return _ort_static(model, samples, out, ("Conv", "MatMul", "Gemm"))


def _ort_dynamic(model: Path, samples: Path, out: Path) -> float:
    from onnxruntime import quantization

    prepared = preprocess(model, out.with_name("preprocessed.onnx"))
    start = time.perf_counter()
    quantization.quantize_dynamic(prepared, out, weight_type=quantization.QuantType.QInt8)
    return time.perf_counter() - start


def _peer(peer: Peer, title: str) -> Variant:
    def make(model: Path, samples: Path, out: Path) -> float:
        prepared = preprocess(model, out.with_name("preprocessed.onnx"))
        return peer.quantize(peer.presets[title], prepared, samples, out)

    stamp = f"{peer.requirements} {peer.alone} {title} {peer.script.read_text(encoding='utf-8')}"
    return Variant(title, "peer", make, lambda: stamp + inspect.getsource(preprocess))


def _ort_stamp(make: Callable[..., float]) -> str:
    sources = (make, _ort_static, quantize_static, preprocess)
    return version("onnx") + runtime_version() + "".join(inspect.getsource(s) for s in sources)


def _recipe(name: str) -> Variant:
    from qcompile.compiler.targets import target_named
    from qcompile.runtime.providers import session_entries

    target = TARGETS.get(name, "cpu")

    def make(model: Path, samples: Path, out: Path) -> float:
        import qcompile
        from qcompile.frontends.builtin_recipes import find_recipe

        find_recipe(name).passes()  # imports
        given = None if name in _NEED_NO_SAMPLES else samples
        start = time.perf_counter()
        qcompile.compile(model, name, calibration=given, target=target, output=out, overwrite=True, prove=False)
        return time.perf_counter() - start

    entries = session_entries(target_named(target).providers[0])
    return Variant(name, "recipe", make, lambda: name + target + sources(), entries, timed=target == "cpu")


@cache
def sources() -> str:
    """A digest of qcompile's own code and recipes, and of what it stands on."""
    import qcompile

    root = Path(qcompile.__file__).parent
    digest = hashlib.sha256("".join(version(p) for p in ("onnx", "onnx-ir", "numpy")).encode())
    digest.update(runtime_version().encode())
    for file in sorted(f for f in root.rglob("*") if f.suffix in (".py", ".yaml")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def runtime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _with_per_channel_opset(source: Path, out: Path) -> Path:
    """Below opset 13 there is no per-channel DequantizeLinear, and the tool would write an invalid graph."""
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) >= 13:
        return source
    onnx.save(version_converter.convert_version(model, 17), out)
    return out
