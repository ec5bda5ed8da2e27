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
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.runtime.benchmark.turns import Contest
from qcompile.runtime.benchmark.work import Work
from qcompile.runtime.providers import CPU, CUDA, TENSORRT

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_SECONDS = 1.5
_COPY = "copy"

_SIDE = {CPU: 1024, CUDA: 4096}
_VECTOR = {CPU: 1 << 25, CUDA: 1 << 28}

_TYPES = {CPU: ("float32", "int8"), CUDA: ("float32", "float16", "bfloat16", "int8")}
"""What the provider multiplies. There is no plain product of 8-bit floats to compare with."""


@dataclass(frozen=True)
class Ceilings:
    """The best that was seen: products in GFLOP/s by type, and bytes read and written in GB/s."""

    products: Mapping[str, float]
    copy: float

    def of_products(self, work: Work, milliseconds: float) -> float | None:
        """The time that the operations take at the ceilings, as a share of the time they took; None if not known."""
        if not work.operations or any(kind not in self.products for kind in work.operations):
            return None
        least = sum(count / (self.products[kind] * 1e6) for kind, count in work.operations.items())
        return least / milliseconds

    def of_copy(self, work: Work, milliseconds: float) -> float:
        """The same for the bytes; above 1 where the cache keeps what one node hands to the next."""
        return work.bytes / (self.copy * 1e6) / milliseconds


def measured(types: Collection[str], provider: str = CPU, threads: int = 0, seconds: float = _SECONDS) -> Ceilings:
    """Measure a copy, and products of those `types` that the provider has.

    TensorRT's are those of the CUDA provider, which needs no build of engines.
    """
    provider = CUDA if provider == TENSORRT else provider
    random, side, length = np.random.default_rng(0), _SIDE[provider], _VECTOR[provider]
    wanted = [kind for kind in _TYPES[provider] if kind in types]
    models = {kind: _product(kind, side, random, provider) for kind in wanted} | {_COPY: _copied(length)}
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        paths = {}
        for name, (model, _) in models.items():
            paths[name] = Path(folder) / f"{name}.onnx"
            paths[name].write_bytes(model.SerializeToString())
        contest = Contest(paths, provider, threads)
    times = contest.each({name: sample for name, (_, sample) in models.items()}, seconds)
    best = {name: min(timing.turns) for name, timing in times.items()}
    return Ceilings({kind: 2 * side**3 / best[kind] / 1e6 for kind in wanted}, 2 * 4 * length / best[_COPY] / 1e6)


def _product(
    kind: str, side: int, random: np.random.Generator, provider: str
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    import ml_dtypes

    if kind == "int8":
        codes = random.integers(0, 127, (2, side, side))
        left = codes[0].astype(np.uint8 if provider == CPU else np.int8)
        return _model("MatMulInteger", left, codes[1].astype(np.int8)), {"x": left}
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    x, w = random.standard_normal((2, side, side), np.float32).astype(dtype)
    return _model("MatMul", x, w), {"x": x}


def _copied(length: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
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
