"""LinearW8A8 and LinearE4M3: every variant, every tail of a tile, every configuration of the device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, linear_e4m3, linear_w8a8
from tests.gpu.machine import Machine

_F16, _BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_ROWS = [(1,), (7,), (16,), (17,), (64,), (3, 43), (512,), (1000,)]
"""Below a tile, one tile, one row more, several tiles, a ragged last one; (3, 43) flattens to 129."""
_SIZES = [(64, 64), (8, 16), (72, 48), (136, 272)]
"""N and K: whole tiles, and ends where only the alignment is left."""
_VARIANTS = [
    linear_w8a8(),
    linear_w8a8(dtype=_F16, bias=True),
    linear_w8a8(dtype=_BF16, bias=True, activation="Relu"),
    linear_w8a8(dtype=_F16, bias=True, activation="Gelu"),
    linear_w8a8(dtype=_BF16, activation="Silu"),
    linear_e4m3(),
    linear_e4m3(dtype=_F16, bias=True, activation="Gelu"),
    linear_e4m3(dtype=_BF16, activation="Relu"),
    linear_e4m3(bias=True, activation="Silu"),
]
_REQUANTIZED = [
    linear_w8a8(requant=True),
    linear_w8a8(bias=True, activation="Relu", requant=True),
    linear_w8a8(bias=True, activation="Gelu", requant=True),
]
_FAMILIES = [linear_w8a8, linear_e4m3]


@pytest.mark.parametrize(("n", "k"), _SIZES)
@pytest.mark.parametrize("operator", _VARIANTS, ids=lambda operator: operator.name)
def test_variants(machine: Machine, operator: Operator, n: int, k: int) -> None:
    machine.check(operator, (33,), n, k)


@pytest.mark.parametrize(("n", "k"), [(64, 64), (16, 16), (144, 272)])
@pytest.mark.parametrize("operator", _REQUANTIZED, ids=lambda operator: operator.name)
def test_requantized(machine: Machine, operator: Operator, n: int, k: int) -> None:
    machine.check(operator, (33,), n, k)


@pytest.mark.parametrize("rows", _ROWS, ids=str)
@pytest.mark.parametrize("make", _FAMILIES)
def test_rows(machine: Machine, make: Callable[..., Operator], rows: tuple[int, ...]) -> None:
    machine.check(make(dtype=_F16, bias=True), rows, 136, 144)


@pytest.mark.parametrize("make", _FAMILIES)
def test_one_scale_for_all_rows(machine: Machine, make: Callable[..., Operator]) -> None:
    machine.check(make(bias=True), (24,), 40, 96, static=True)


@pytest.mark.parametrize("make", _FAMILIES)
def test_no_rows(machine: Machine, make: Callable[..., Operator]) -> None:
    machine.check(make(), (0,), 32, 64)


@pytest.mark.parametrize("make", _FAMILIES)
def test_many_products_in_one_sum(machine: Machine, make: Callable[..., Operator]) -> None:
    machine.check(make(), (5,), 64, 8192)


@pytest.mark.parametrize(("n", "k", "message"), [(64, 24, "K must be a multiple of 16"), (20, 32, "N must be")])
@pytest.mark.parametrize("make", _FAMILIES)
def test_a_shape_off_the_alignment_is_refused(
    cuda: Machine, make: Callable[..., Operator], n: int, k: int, message: str
) -> None:
    with pytest.raises(Exception, match=message):
        cuda.check(make(), (4,), n, k)


@pytest.mark.parametrize("rows", [1, 65, 300])
@pytest.mark.parametrize(
    "operator",
    [
        linear_w8a8(bias=True),
        linear_w8a8(dtype=_F16, bias=True, activation="Gelu"),
        linear_w8a8(bias=True, requant=True),
        linear_e4m3(bias=True),
        linear_e4m3(dtype=_BF16, bias=True, activation="Silu"),
    ],
    ids=lambda operator: operator.name,
)
def test_every_configuration(cuda: Machine, operator: Operator, rows: int) -> None:
    n, k = 272, 1040
    for _ in _configurations(cuda, "LinearE4M3" if "E4M3" in operator.name else "LinearW8A8", rows, n, k):
        cuda.check(operator, (rows,), n, k)


def _configurations(machine: Machine, family: str, rows: int, n: int, k: int) -> Iterator[int]:
    """Choose each configuration of the family for this shape in turn."""
    library = ctypes.CDLL(str(machine.library))
    library.qcompile_configuration.restype = ctypes.c_char_p
    shape = [ctypes.c_int64(size) for size in (rows, n, k)]
    index = 0
    try:
        while library.qcompile_configuration(family.encode(), index) is not None:
            library.qcompile_choose(family.encode(), *shape, index)
            yield index
            index += 1
    finally:
        library.qcompile_clear_choices()
    assert index > 1, f"{family} has {index} configurations here"
