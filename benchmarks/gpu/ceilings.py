"""What the device can do at best, measured: a copy in GB/s, cuBLASLt's products in TFLOP/s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.shapes import giga, tera
from benchmarks.gpu.timing import captured, interleaved

_SIDE = 8192
_BYTES = 2**30


def measured() -> dict[str, float]:
    """`copy` counts bytes read and written; `fp16`, `int8` and `fp8` are products of square matrices of side 8192."""
    import torch

    source = torch.zeros(_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    half = torch.randn(_SIDE, _SIDE, dtype=torch.float16, device="cuda")
    int8 = torch.randint(-127, 128, (_SIDE, _SIDE), dtype=torch.int8, device="cuda")
    fp8 = half.to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    products: dict[str, Callable[[int], Any]] = {
        "fp16": lambda _: half @ half.t(),
        "int8": lambda _: torch._int_mm(int8, int8.t()),
        "fp8": lambda _: torch._scaled_mm(fp8, fp8.t(), scale_a=one, scale_b=one, out_dtype=torch.float16),
    }
    ready = {name: captured(call, 4) for name, call in products.items()}
    ready["copy"] = captured(lambda _: target.copy_(source), 4)
    times = {name: timing.microseconds for name, timing in interleaved(ready, 4).items()}
    found = {name: round(tera(2 * _SIDE**3, times[name]), 1) for name in products}
    return {"copy": round(giga(2 * _BYTES, times["copy"]), 1)} | found
