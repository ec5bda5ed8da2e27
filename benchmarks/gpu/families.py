"""The families: what our kernels and the others do with a shape, on tensors drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from benchmarks.gpu import ours, peers
from benchmarks.gpu.shapes import Shape, copies
from benchmarks.gpu.timing import captured
from qcompile.compiler.operators import (
    linear24,
    linear24_w8a8,
    linear_e4m3,
    linear_w4a16,
    linear_w8a8,
    norm_quant,
    quantize_rows,
)

BLOCK = 64
_F16, _E4M3 = ir.DataType.FLOAT16, ir.DataType.FLOAT8E4M3FN
Tensors = dict[str, Any]
Contestants = Iterator[tuple[str, Callable[[], Callable[[], None]]]]


@dataclass(frozen=True)
class Family:
    """Kernels that are compared.

    Attributes:
        ceiling: which measured rate of arithmetic bounds it; empty where memory alone does.
        element: bytes of an element of x, w and y.
        contestants: name -> what makes the function that enqueues one call for each set of tensors.
    """

    ceiling: str
    element: tuple[float, float, float]
    tensors: Callable[[Shape, int], Tensors]
    contestants: Callable[[Shape, list[Tensors]], Contestants]
    of_rows: bool = False
    """Whether the work is on x [m, k] alone, so that the N of a layer does not matter."""

    def bytes(self, shape: Shape) -> int:
        """Least traffic of one call."""
        x, w, y = self.element
        return round(shape.m * shape.k * (x + y)) if self.of_rows else shape.bytes(x, w, y)

    def sets(self, shape: Shape, cache: int) -> list[Tensors]:
        """As many sets of tensors as it takes to leave none in the cache."""
        return [self.tensors(shape, seed) for seed in range(copies(self.bytes(shape), cache))]


def _codes(shape: Shape, seed: int, dtype: Any) -> Tensors:
    """Operands of a layer on codes of `dtype`, and of the same layer in float16."""
    import torch

    random = _random(seed)
    x, w = (random(rows, shape.k) * 40 for rows in (shape.m, shape.n))
    half = torch.float16
    bias = random(shape.n)
    return {
        "x": x.to(half),
        "x_q": x.clamp(-127, 127).to(dtype),
        "x_scale": torch.full((shape.m, 1), 0.01, device="cuda"),
        "w": w.clamp(-127, 127).to(dtype),
        "w_scale": torch.full((shape.n,), 0.01, device="cuda"),
        "bias": bias,
        "x_half": x.to(half),
        "w_half": w.to(half),
        "bias_half": bias.to(half),
        "bias_bfloat16": bias.to(torch.bfloat16),
    }


def _w8a8(shape: Shape, sets: list[Tensors]) -> Contestants:
    linear = linear_w8a8(bias=True, dtype=_F16)
    yield "ours", lambda: ours.captured([(linear, {})], sets)
    yield "ours with QuantizeRows", lambda: ours.captured([(quantize_rows(dtype=_F16), {}), (linear, {})], sets)
    yield "fp16", lambda: captured(peers.half(sets), len(sets))
    if shape.m > 16:
        yield "torch._int_mm", lambda: captured(peers.int_mm(sets), len(sets))


def _e4m3(shape: Shape, sets: list[Tensors]) -> Contestants:
    linear = linear_e4m3(bias=True, dtype=_F16)
    rows = quantize_rows(dtype=_F16, codes=_E4M3)
    yield "ours", lambda: ours.captured([(linear, {})], sets)
    yield "ours with QuantizeRows", lambda: ours.captured([(rows, {}), (linear, {})], sets)
    yield "fp16", lambda: captured(peers.half(sets), len(sets))
    yield "torch._scaled_mm", lambda: captured(peers.scaled_mm(sets), len(sets))


def _int4(shape: Shape, seed: int) -> Tensors:
    import torch

    random = _random(seed)
    x = random(shape.m, shape.k).to(torch.float16)
    packed = torch.randint(0, 256, (shape.n, shape.k // 2), dtype=torch.uint8, device="cuda")
    half = random(shape.n, shape.k).to(torch.float16)
    return {
        "x": x,
        "w": packed,
        "w_scale": torch.full((shape.n, shape.k // BLOCK), 0.01, dtype=torch.float16, device="cuda"),
        "x_half": x,
        "w_half": half,
        "bias_half": torch.zeros(shape.n, dtype=torch.float16, device="cuda"),
    }


def _w4a16(shape: Shape, sets: list[Tensors]) -> Contestants:
    linear = linear_w4a16(dtype=_F16)
    yield "ours", lambda: ours.captured([(linear, {"block_size": BLOCK})], sets, int4={"w": (shape.n, shape.k)})
    yield "fp16", lambda: captured(peers.half(sets), len(sets))
    model = peers.mat_mul_nbits
    yield "ORT MatMulNBits", lambda: ours.session(model(sets, shape.n, shape.k, BLOCK), sets, library=False)


def _sparse(shape: Shape, seed: int) -> Tensors:
    import torch

    tensors = _codes(shape, seed, torch.int8)
    keep = torch.tensor([1, 0, 0, 1], device="cuda").repeat(shape.k // 4)
    return tensors | {name: tensors[name] * keep.to(tensors[name].dtype) for name in ("w", "w_half")}


def _linear24(shape: Shape, sets: list[Tensors]) -> Contestants:
    half = [{"x": t["x_half"], "w": t["w_half"], "bias": t["bias"]} for t in sets]
    yield "ours fp16", lambda: ours.captured([(linear24(bias=True, dtype=_F16), {})], half, constants={"w", "bias"})
    int8 = linear24_w8a8(bias=True, dtype=_F16)
    yield "ours int8", lambda: ours.captured([(int8, {})], sets, constants={"w", "bias"})
    yield "fp16", lambda: captured(peers.half(sets), len(sets))
    yield "torch semi-structured", lambda: captured(peers.semi_structured(sets), len(sets))


def _normed(shape: Shape, seed: int) -> Tensors:
    import torch

    random = _random(seed)
    gamma, beta = random(shape.k), random(shape.k)
    x, skip = (random(shape.m, shape.k).to(torch.float16) for _ in range(2))
    tensors = {"x": x, "skip": skip, "gamma": gamma, "beta": beta}
    return tensors | {f"{name}_half": tensors[name].to(torch.float16) for name in ("gamma", "beta")}


def _norms(shape: Shape, sets: list[Tensors]) -> Contestants:
    norm = norm_quant("LayerNorm", add=True, dtype=_F16)
    wanted = {"sum"}
    yield "ours AddLayerNormQuant", lambda: ours.captured([(norm, {"epsilon": 1e-5})], sets, wanted=wanted)
    yield "torch add, layer_norm", lambda: captured(peers.layer_norm(sets), len(sets))


def _rows(shape: Shape, sets: list[Tensors]) -> Contestants:
    yield "ours QuantizeRows", lambda: ours.captured([(quantize_rows(dtype=_F16), {})], sets)
    yield "copy", lambda: captured(peers.copy(sets), len(sets))


def _random(seed: int) -> Callable[..., Any]:
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)
    return lambda *size: torch.randn(*size, device="cuda", generator=generator)


def _int8(shape: Shape, seed: int) -> Tensors:
    import torch

    return _codes(shape, seed, torch.int8)


def _float8(shape: Shape, seed: int) -> Tensors:
    import torch

    return _codes(shape, seed, torch.float8_e4m3fn)


FAMILIES = {
    "w8a8": Family("int8", (1, 1, 2), _int8, _w8a8),
    "e4m3": Family("fp8", (1, 1, 2), _float8, _e4m3),
    "w4a16": Family("fp16", (2, 0.5 + 2 / BLOCK, 2), _int4, _w4a16),
    "linear24": Family("", (2, 1.125, 2), _sparse, _linear24),
    "norms": Family("", (4, 0, 3), _normed, _norms, of_rows=True),
    "rows": Family("", (2, 0, 1), _normed, _rows, of_rows=True),
}
