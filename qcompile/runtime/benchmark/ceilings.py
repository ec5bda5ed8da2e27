"""What this device can do at best, measured by ONNX Runtime on itself: large products, and a copy.

    product    two square matrices, one of them a constant as weights are      2 n^3 operations
    copy       max(x, 0) of a vector that no cache holds                       2 |x| bytes

Both end in a slice, so that no result has to be fetched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompile.runtime.benchmark.turns import Array, Contest, Sample
from qcompile.runtime.benchmark.work import Work
from qcompile.runtime.providers import CPU, CUDA

if TYPE_CHECKING:
    import onnx

_SECONDS = 1.0
_COPY = "copy"

_SIDES = {CPU: (512, 1024), CUDA: (4096, 8192)}
"""The better of two counts: many cores need a large product, and on a busy machine a short one is disturbed less."""

_VECTOR = {CPU: 1 << 25, CUDA: 1 << 28}

_TYPES = {CPU: ("float32", "int8"), CUDA: ("float32", "float16", "int8")}
"""What the provider multiplies. It has no plain product of 8-bit floats to compare with."""

_ALIKE = {"bfloat16": "float16"}
"""Tensor cores multiply both at one rate."""


@dataclass(frozen=True)
class Ceilings:
    """The best that was seen: products in GFLOP/s by type, and bytes read and written in GB/s."""

    products: Mapping[str, float]
    copy: float

    def of_products(self, work: Work, milliseconds: float) -> float | None:
        """The time that the operations take at the ceilings, as a share of the time they took; None if not known."""
        rates = {kind: self.products.get(_ALIKE.get(kind, kind)) for kind in work.operations}
        times = [work.operations[kind] / (rate * 1e6) for kind, rate in rates.items() if rate is not None]
        return sum(times) / milliseconds if rates and len(times) == len(rates) else None

    def of_copy(self, work: Work, milliseconds: float) -> float:
        """The same for the bytes; above 1 where the cache keeps what one node hands to the next."""
        return work.bytes / (self.copy * 1e6) / milliseconds


def measured(types: Collection[str], provider: str = CPU, threads: int = 0, seconds: float = _SECONDS) -> Ceilings:
    """Measure a copy, and products of those `types` that the provider has.

    TensorRT's are those of the CUDA provider, which needs no build of engines.
    """
    provider = CPU if provider == CPU else CUDA
    random, length = np.random.default_rng(0), _VECTOR[provider]
    needed = {_ALIKE.get(kind, kind) for kind in types}
    wanted = [kind for kind in _TYPES[provider] if kind in needed]
    models = {f"{kind} {side}": _product(kind, side, random, provider) for kind in wanted for side in _SIDES[provider]}
    best = _best_runs(models | {_COPY: _copied(length)}, provider, threads, seconds)
    products = {kind: max(2 * side**3 / best[f"{kind} {side}"] / 1e6 for side in _SIDES[provider]) for kind in wanted}
    return Ceilings(products, 2 * 4 * length / best[_COPY] / 1e6)


def _best_runs(
    models: Mapping[str, tuple[onnx.ModelProto, Sample]], provider: str, threads: int, seconds: float
) -> dict[str, float]:
    """The best turn of each model on its sample, in ms."""
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in models}
        for name, path in paths.items():
            path.write_bytes(models[name][0].SerializeToString())
        contest = Contest(paths, provider, threads)
    timings = contest.each({name: sample for name, (_, sample) in models.items()}, seconds)
    return {name: min(timing.turns) for name, timing in timings.items()}


def _product(kind: str, side: int, random: np.random.Generator, provider: str) -> tuple[onnx.ModelProto, Sample]:
    if kind == "int8":
        codes = random.integers(0, 127, (2, side, side))
        left = codes[0].astype(np.uint8 if provider == CPU else np.int8)
        return _model("MatMulInteger", left, codes[1].astype(np.int8)), {"x": left}
    x, w = random.standard_normal((2, side, side), np.float32).astype(kind)
    return _model("MatMul", x, w), {"x": x}


def _copied(length: int) -> tuple[onnx.ModelProto, Sample]:
    x = np.ones(length, np.float32)
    return _model("Relu", x), {"x": x}


def _model(op_type: str, x: Array, *weights: Array) -> onnx.ModelProto:
    """The first element of `op_type` of the input x and of constants."""
    import onnx
    from onnx import helper, numpy_helper

    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    result = onnx.TensorProto.INT32 if op_type == "MatMulInteger" else dtype
    constants = {f"w{i}": array for i, array in enumerate(weights)}
    ends = {"begin": np.zeros(x.ndim, np.int64), "end": np.ones(x.ndim, np.int64)}
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *constants], ["y"]), helper.make_node("Slice", ["y", *ends], ["first"])],
        "ceiling",
        [helper.make_tensor_value_info("x", dtype, x.shape)],
        [helper.make_tensor_value_info("first", result, [1] * x.ndim)],
        [numpy_helper.from_array(array, name) for name, array in (constants | ends).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
