from __future__ import annotations

import math

import pytest

from qcompile.compiler.report import NOISELESS
from qcompile.compiler.reporting.wording import (
    cosine,
    count,
    data_size,
    decibel,
    duration,
    plain,
    shortened,
    significant,
    times,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (18_614_587, "18.6 MB"),
        (999_600, "1.00 MB"),
        (2.5e12, "2500 GB"),
    ],
)
def test_data_size_is_decimal(size: float, text: str) -> None:
    assert data_size(size) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (16.54, "16.5"),
        (-0.00123, "-0.00123"),
        (1e-9, "1.00e-09"),
        (123456, "123456"),
        (math.inf, "∞"),
        (math.nan, "n/a"),
    ],
)
def test_significant_digits(number: float, text: str) -> None:
    assert significant(number) == text


def test_times_says_which_way_it_went() -> None:
    assert times(2.04, "faster", "slower") == "2.04x faster"
    assert times(0.5, "faster", "slower") == "2.00x slower"
    assert times(0.998, "faster", "slower") == times(1.004, "faster", "slower") == "no faster"
    assert times(0, "faster", "slower") == "n/a"


def test_durations() -> None:
    assert [duration(s) for s in (0.0002, 0.0042, 0.32, 2.514, 200)] == [
        "<1 ms",
        "4 ms",
        "320 ms",
        "2.51 s",
        "3 min 20 s",
    ]


def test_noise_of_equal_tensors_is_called_equal() -> None:
    assert decibel(NOISELESS) == "equal"
    assert decibel(None) == "-"
    assert cosine(0.9985) == "0.9985"
    assert cosine(0.999923) == "0.999923"


def test_names_cannot_command_the_terminal() -> None:
    assert plain("a\x1b[31mb\n") == r"a\x1b[31mb\n"
    assert len(shortened("/encoder/layer.0/attention/self/MatMul", 20)) == 20
    assert count(1, "node") == "1 node"
    assert count(1200, "pass", "passes") == "1,200 passes"
