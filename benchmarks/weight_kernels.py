"""Time and noise of linear layers whose weights are codes: what the table of the target `cpu` stores, and how.

    python -m benchmarks.weight_kernels

MatMulNBits of 2, 4 and 8 bits, in blocks of 32, 64 and 128, with and without zero points, with inputs that the kernel
quantizes (accuracy level 4) and with float ones (level 1). Products of one row, as when a language model writes one
token after the other, and of 128 rows. Microseconds, one thread, best of all rounds, the variants in turns; noise
against float in dB, inputs and weights normal.
"""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.dynamic_kernels import measured, model, normal
from benchmarks.record import save, table
from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.specs import PerBlock, QuantSpec
from qcompile.compiler.weight_params import weight_codes, weight_params
from qcompile.passes.lower.packing import packed_blocks

_SHAPES = ((576, 1536), (1536, 576))
_BITS = (2, 4, 8)
_BLOCKS = (32, 64, 128)
_LEVELS = (4, 1)


def main() -> None:
    rows: list[dict[str, Any]] = []
    for depth, columns in _SHAPES:
        weight = normal(depth, columns)
        for bits in _BITS:
            models = {"float": model("MatMul", ["w"], {"w": weight})}
            for size, symmetric, level in itertools.product(_BLOCKS, (True, False), _LEVELS):
                name = f"{size} {'symmetric' if symmetric else 'zero points'}, level {level}"
                models[name] = _blocks(weight, bits, size, symmetric, level)
            for count in (1, 128):
                found = measured(models, {"x": normal(count, depth)})
                rows.append({"layer": f"{count} x {depth} x {columns}", "bits": bits} | found)
                print("  ", rows[-1], flush=True)
    print(save("weight_kernels", rows, {"threads": 1}))
    cases = [case for case in rows[0] if case not in ("layer", "bits")]
    print(table(["", *(f"{r['layer']}, {r['bits']} bits" for r in rows)], [[c, *(r[c] for r in rows)] for c in cases]))


def _blocks(weight: Any, bits: int, size: int, symmetric: bool, level: int) -> Any:
    full = symmetric and bits < 8
    fmt = FORMATS[f"{'' if symmetric else 'u'}int{bits}"]
    params = weight_params(weight, QuantSpec(fmt, PerBlock(0, size), symmetric, full, Scales.FLOAT16))
    packed = packed_blocks(QuantizedWeight(params, weight_codes(weight, params)))
    arrays: dict[str, Any] = {"w": packed.codes, "s": packed.scale}
    if packed.zero_point is not None:
        arrays["z"] = packed.zero_point
    options = {"K": weight.shape[0], "N": weight.shape[1], "bits": bits, "block_size": size, "accuracy_level": level}
    return model("MatMulNBits", list(arrays), arrays, **options)


if __name__ == "__main__":
    main()
