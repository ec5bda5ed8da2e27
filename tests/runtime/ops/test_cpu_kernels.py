"""Each CPU kernel and each body answer as the reference does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.operators import catalogue
from qcompile.runtime.ops.library import open_library
from tests.operators.library import options_with
from tests.operators.operands import CONSTANTS, attributes_of, operands
from tests.operators.reference import expected
from tests.operators.running import model_of, run, session

OPERATORS = catalogue()
Array = np.ndarray[Any, Any]


def test_the_library_has_the_catalogue(library: Path) -> None:
    """Names, operands and their order: what the definitions say."""
    signatures = {
        name: f"{name}({', '.join(i.name for i in op.inputs)}) -> ({', '.join(o.name for o in op.outputs)})"
        for name, op in OPERATORS.items()
    }
    assert open_library(library).operators["cpu"] == signatures


def free(feeds: dict[str, Array]) -> dict[str, list[int | str]]:
    """Their shapes, empty dimensions symbolic: the runtime's own fusions fail where one is known to be empty."""
    return {key: [d or f"empty_{axis}" for axis, d in enumerate(value.shape)] for key, value in feeds.items()}


def check(
    library: Path,
    name: str,
    rows: tuple[int, ...],
    n: int,
    k: int,
    *,
    block: int = 32,
    static: bool = False,
    constant: bool = True,
    wanted: frozenset[str] | None = None,
    body: bool = True,
    seed: int = 0,
) -> None:
    """The kernel, and with `body` the body, against the reference on the same random operands."""
    operator = OPERATORS[name]
    inputs = operands(operator, rows, n, k, block=block, static=static, seed=seed)
    attributes = attributes_of(operator, block=block)
    always = {"w", "w_zero"} if "W4A16" in name else set()  # 4-bit codes are nothing that numpy could feed
    fixed = {key: value for key, value in inputs.items() if key in (CONSTANTS if constant else always)}
    fed = {key: value for key, value in inputs.items() if key not in fixed}
    model = model_of(operator, free(fed), constants=fixed, attributes=attributes, wanted=wanted)
    right = expected(operator, inputs, attributes)
    for kernels in (library, None) if body else (library,):
        for output, got in run(session(model, options_with(kernels)), fed).items():
            what = "body" if kernels is None else "kernel"
            right[output].check(got, f"{what} of {name}.{output}, {rows} x {n} x {k}")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_kernel(name: str, library: Path) -> None:
    check(library, name, (2, 3), 8, 64, body=False)


@settings(max_examples=60)
@given(data=st.data())
def test_kernel_and_body_at_any_shape(data: st.DataObject, library: Path) -> None:
    """One row and none, tails of every length, constants and fed weights, a static scale."""
    name = data.draw(st.sampled_from(sorted(OPERATORS)))
    block = data.draw(st.sampled_from((32, 64, 128)))
    step = block if "W4A16" in name else 4 if "Linear24" in name else 1
    k = step * data.draw(st.integers(1, 300 // step))
    optional = [o.name for o in OPERATORS[name].outputs if o.optional]
    check(
        library,
        name,
        data.draw(st.sampled_from(((1,), (0,), (), (5,), (1, 1), (3, 0, 2), (2, 1, 3), (33,)))),
        data.draw(st.integers(1, 70)),
        k,
        block=block,
        static=data.draw(st.booleans()),
        constant=data.draw(st.booleans()),
        wanted=frozenset(data.draw(st.sets(st.sampled_from(optional)))) if optional else None,
        seed=data.draw(st.integers(0, 99)),
    )


def one(library: Path, name: str, feeds: dict[str, Array]) -> dict[str, Array]:
    model = model_of(OPERATORS[name], {key: value.shape for key, value in feeds.items()})
    return run(session(model, options_with(library)), feeds)


def floats() -> Array:
    """Bit patterns of every kind: normal, subnormal, infinite, NaN, ties of float16 and bfloat16."""
    rng = np.random.default_rng(0)
    everywhere = rng.integers(0, 2**32, 60000, np.uint32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    next_to = np.nextafter(halves, np.float32(np.inf), dtype=np.float32)
    between = (halves[:-1].astype(np.float64) + halves[1:]).astype(np.float32) / 2
    ties = (everywhere & 0xFFFF0000) | 0x8000
    return np.concatenate([everywhere.view(np.float32), ties.view(np.float32), halves, next_to, between])


@pytest.mark.filterwarnings("ignore:(overflow|invalid)")
@pytest.mark.parametrize(("suffix", "dtype"), [("Fp16", np.float16), ("Bf16", ml_dtypes.bfloat16)])
def test_results_round_to_nearest_even(suffix: str, dtype: Any, library: Path) -> None:
    """1 * 1 * x_scale is any float32 there is."""
    values = floats()
    ones = np.ones((len(values), 1), np.int8)
    feeds = {"x_q": ones, "x_scale": values[:, None], "w": ones[:1], "w_scale": np.ones(1, np.float32)}
    got = one(library, f"LinearW8A8{suffix}", feeds)["y"][:, 0]
    right = values.astype(dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(right))
    ordinary = ~np.isnan(right)
    np.testing.assert_array_equal(got[ordinary].view(np.uint16), right[ordinary].view(np.uint16))


@pytest.mark.parametrize(("suffix", "dtype"), [("Fp16", np.float16), ("Bf16", ml_dtypes.bfloat16)])
def test_every_narrow_float_is_read_exactly(suffix: str, dtype: Any, library: Path) -> None:
    """1 * x is x, whatever 16 bits x has; but a zero has lost its sign in a sum."""
    x = np.zeros((2**16, 4), dtype)
    x[:, 0] = np.arange(2**16, dtype=np.uint16).view(dtype)
    w = np.array([[1, 0, 0, 0]], dtype)
    got = one(library, f"Linear24{suffix}", {"x": x, "w": w})["y"][:, 0]
    np.testing.assert_array_equal(got.astype(np.float32), x[:, 0].astype(np.float32))


def test_every_e4m3_code_is_read_exactly(library: Path) -> None:
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    single = np.ones(1, np.float32)
    feeds = {"x_q": codes[:, None], "x_scale": single, "w": codes[56:57, None], "w_scale": single}
    assert float(codes[56]) == 1.0
    got = one(library, "LinearE4M3", feeds)["y"][:, 0]
    np.testing.assert_array_equal(got, codes.astype(np.float32))


def test_e4m3_codes_round_to_nearest_even(library: Path) -> None:
    """Beside 448 the scale of a row is 1."""
    grid = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    between = (grid[1:] + grid[:-1]) / 2
    near = np.concatenate([grid, between, np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(449))])
    values = np.concatenate([near, -near])
    x = np.stack([np.full_like(values, 448), values], 1)
    got = one(library, "QuantizeRowsE4M3", {"x": x})
    np.testing.assert_array_equal(got["x_scale"], 1)
    right = values.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(got["x_q"][:, 1].view(np.uint8), right.view(np.uint8))
