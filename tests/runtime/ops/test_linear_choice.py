"""Which kernel a linear layer of 8-bit codes runs: by the device, by the rule, by what was tuned."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcompile.runtime.ops.places import SOURCES

_EMULATOR = Path(__file__).parent / "emulator"
_F32, _F16, _BF16 = range(3)


class _Layers:
    """The dispatch of LinearW8A8 (`int8`) and LinearE4M3, over made-up tables of kernels."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.chosen.restype = library.run.restype = ctypes.c_char_p

    def be(self, capability: int) -> None:
        self._library.be_device(capability)

    def chosen(self, m: int, n: int, k: int, *, int8: bool = True) -> str:
        return str(self._library.chosen(int8, *_sizes(m, n, k)).decode())

    def choose(self, m: int, n: int, k: int, configuration: int, *, int8: bool = True) -> None:
        self._library.choose(int8, *_sizes(m, n, k), configuration)

    def run(self, m: int, n: int, k: int, *, int8: bool = True, dtype: int = _F16, requantized: bool = False) -> str:
        return str(self._library.run(int8, *_sizes(m, n, k), dtype, requantized).decode())

    def forget(self) -> None:
        self._library.forget()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    native, out = SOURCES / "native", tmp_path_factory.mktemp("choices") / "choices.so"
    sources = [native / "cuda" / f"{name}.cu" for name in ("linear", "linear_w8a8", "linear_e4m3", "tuning")]
    generations = [f"-DQCOMPILE_SM{generation}" for generation in (80, 89, 90)]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-x", "c++", *generations]
    includes = [f"-I{path}" for path in (_EMULATOR, native, native / "cuda")]
    files = [str(path) for path in (*sources, _EMULATOR / "choices.cc")]
    subprocess.run(["g++", *flags, *includes, *files, "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture
def layers(library: ctypes.CDLL) -> Iterator[_Layers]:
    made = _Layers(library)
    made.be(90)
    yield made
    made.forget()


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def test_the_rule_widens_the_tile_with_the_work(layers: _Layers) -> None:
    assert layers.chosen(1, 4096, 4096) == "64x32"
    assert layers.chosen(16, 4096, 4096) == "64x32"
    assert layers.chosen(64, 1024, 4096) == "128x128 split"  # narrow tiles would occupy a quarter of the processors
    assert layers.chosen(512, 4096, 1024) == "128x128"
    assert layers.chosen(8192, 8192, 4096) == "128x256"


def test_a_choice_holds_for_its_bucket_of_rows_and_its_family_alone(layers: _Layers) -> None:
    layers.choose(100, 4096, 4096, 0)
    assert layers.chosen(65, 4096, 4096) == layers.chosen(128, 4096, 4096) == "64x32"
    assert layers.chosen(129, 4096, 4096) != "64x32"
    assert layers.chosen(100, 4096, 2048) != "64x32"
    assert layers.chosen(100, 4096, 4096, int8=False) != "64x32"
    layers.forget()
    assert layers.chosen(100, 4096, 4096) != "64x32"


def test_rows_beyond_the_last_bucket_share_it(layers: _Layers) -> None:
    layers.choose(8192, 256, 256, 0)
    assert layers.chosen(1_000_000, 256, 256) == "64x32"


@pytest.mark.parametrize("configuration", [-1, 4, 99])
def test_a_choice_that_the_device_does_not_have_is_passed_over(layers: _Layers, configuration: int) -> None:
    expected = layers.chosen(16, 4096, 4096)
    layers.choose(16, 4096, 4096, configuration)
    assert layers.chosen(16, 4096, 4096) == expected


@pytest.mark.parametrize(
    ("dtype", "requantized", "ran"), [(_F32, False, "f"), (_F16, False, "h"), (_BF16, False, "h"), (_F32, True, "i")]
)
def test_the_result_decides_the_kernel_for_workspace_and_launch(
    layers: _Layers, dtype: int, requantized: bool, ran: str
) -> None:
    assert layers.run(16, 64, 64, dtype=dtype, requantized=requantized) == ran * 2


@pytest.mark.parametrize(
    ("capability", "int8", "name"),
    [
        (80, True, "ampere"),
        (86, True, "ampere"),
        (89, True, "ampere"),
        (89, False, "ada"),
        (90, True, "64x32"),
        (90, False, "64x32"),
        (120, True, "ampere"),
    ],
)
def test_the_device_decides_the_generation(layers: _Layers, capability: int, int8: bool, name: str) -> None:
    layers.be(capability)
    assert layers.chosen(1, 4096, 4096, int8=int8) == name


@pytest.mark.parametrize(
    ("capability", "int8", "refusal"),
    [
        (75, True, "LinearW8A8 needs a GPU of compute capability 8.0"),
        (80, False, "LinearE4M3 needs a GPU of compute capability 8.9"),
    ],
)
def test_an_older_device_is_told(layers: _Layers, capability: int, int8: bool, refusal: str) -> None:
    layers.be(capability)
    assert layers.run(16, 64, 64, int8=int8).startswith(refusal)


@pytest.mark.parametrize(
    ("n", "k", "requantized", "refusal"),
    [(64, 24, False, "K must be a multiple of 16"), (20, 32, False, "N must be"), (24, 32, True, "N must be")],
)
def test_a_shape_off_the_alignment_is_told(layers: _Layers, n: int, k: int, requantized: bool, refusal: str) -> None:
    assert refusal in layers.run(16, n, k, requantized=requantized)
