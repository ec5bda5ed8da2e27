"""The arithmetic of the GPU benchmark, its tables, and the models it builds; nothing is timed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from benchmarks.gpu import ours
from benchmarks.gpu.families import FAMILIES
from benchmarks.gpu.shapes import Shape, copies, giga, least_microseconds, shapes, tera
from benchmarks.gpu.timing import Timing
from benchmarks.gpu_kernels import least_of, rendered
from qcompile.compiler.operators import linear24, linear_w4a16, linear_w8a8, norm_quant, quantize_rows

_F16 = ir.DataType.FLOAT16


def test_rates() -> None:
    shape = Shape("any", "layer", 16, 4096, 1024)
    assert shape.operations == 2 * 16 * 4096 * 1024
    assert shape.bytes(1, 1, 2) == 16 * 1024 + 4096 * 1024 + 2 * 16 * 4096
    assert shape.bytes(2, 0.5, 2) == 2 * 16 * 1024 + 4096 * 512 + 2 * 16 * 4096
    assert tera(2e12, 1e6) == 2  # 2e12 operations in a second
    assert giga(3e9, 1e6) == 3
    assert least_microseconds(3e9, 3000) == pytest.approx(1000)
    assert least_microseconds(3e9, 3000, 1e15, 500) == pytest.approx(2e6)


def test_sets_of_tensors_leave_none_in_the_cache() -> None:
    assert copies(1000, 50_000) == 64
    assert copies(40_000_000, 50_000_000) == 3
    assert copies(200_000_000, 50_000_000) == 1


def test_shapes_cover_one_row_to_many() -> None:
    found = list(shapes())
    assert {s.m for s in found if s.model == "Llama 8B"} >= {1, 8192}
    assert any(s.m % 8 for s in found if s.model == "ViT-L")
    assert all(s.k % 32 == 0 and s.n % 16 == 0 for s in found), "every kernel takes every layer"
    assert len(set(found)) == len(found)


def test_the_median_counts() -> None:
    timing = Timing.of([10, 11, 12, 13, 1000])
    assert timing.microseconds == 12
    assert timing.spread == pytest.approx((506.5 - 10.5) / 12)


def test_the_table() -> None:
    shape = {"model": "Llama 8B", "layer": "o", "m": 1, "n": 4096, "k": 4096}
    row = shape | {"microseconds": {"ours": 10.0, "fp16": 20.0}, "spread": {}, "copies": 1}
    late = shape | {"m": 8192, "microseconds": {"fp16": 1000.0}, "spread": {}, "copies": 1}
    found: dict[str, Any] = {"rows": [row, late], "ceilings": {"copy": 2000.0, "int8": 1000.0}}
    lines = rendered(found, FAMILIES["w8a8"]).splitlines()
    assert lines[0].startswith("| Model | Layer | M x N x K | least, us | ours, us | fp16, us | GB/s |")
    assert lines[2] == "| Llama 8B | o | 1 x 4096 x 4096 | 8.4 | 10.0 | 20.0 | 1679 | 3 | 84% |"
    assert lines[3] == "| Llama 8B | o | 8192 x 4096 x 4096 | 274.9 |  | 1000.0 |  |  |  |"


def test_rows_alone_are_bound_by_memory() -> None:
    shape = Shape("any", "layer", 100, 1, 1000)
    assert least_of(shape, FAMILIES["rows"], {"copy": 1.0}) == pytest.approx(300)


def test_models_of_our_kernels() -> None:
    """Two sets, one chain each; a chain hands over what the next operator reads."""

    class Tensor:
        def __init__(self, array: Any) -> None:
            self.array, self.shape = array, array.shape

        def cpu(self) -> Tensor:
            return self

        def numpy(self) -> Any:
            return self.array

    def tensors(**shapes: tuple[int, ...]) -> list[dict[str, Tensor]]:
        return [{name: Tensor(np.zeros(shape, np.float32)) for name, shape in shapes.items()} for _ in range(2)]

    chain = [(quantize_rows(dtype=_F16), {}), (linear_w8a8(dtype=_F16), {})]
    model = ours.chained(chain, tensors(x=(4, 32), w=(16, 32), w_scale=(16,)))
    assert _ports(model) == (["x.0", "w.0", "w_scale.0", "x.1", "w.1", "w_scale.1"], ["y.0", "y.1"])
    sparse = ours.chained([(linear24(dtype=_F16), {})], tensors(x=(4, 32), w=(16, 32)), constants={"w"})
    assert _ports(sparse) == (["x.0", "x.1"], ["y.0", "y.1"])
    packed = ours.chained(
        [(linear_w4a16(dtype=_F16), {"block_size": 32})],
        tensors(x=(4, 64), w=(16, 32), w_scale=(16, 2)),
        int4={"w": (16, 64)},
    )
    assert _ports(packed)[1] == ["y.0", "y.1"]
    norm = norm_quant("LayerNorm", add=True, dtype=_F16)
    normed = ours.chained(
        [(norm, {"epsilon": 1e-5})], tensors(x=(4, 32), skip=(4, 32), gamma=(32,), beta=(32,)), wanted={"sum"}
    )
    assert sorted(_ports(normed)[1]) == ["sum.0", "sum.1", "x_q.0", "x_q.1", "x_scale.0", "x_scale.1"]


def _ports(model: ir.Model) -> tuple[list[str], list[str]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return [p.name for p in proto.graph.input], [p.name for p in proto.graph.output]
