from __future__ import annotations

import dataclasses

import pytest

from qcompile.compiler.formats import INT4, INT8, MXFP4, NF4, UINT8, Scales
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (QuantSpec(UINT8), "uint8 asymmetric per tensor"),
        (QuantSpec(INT8, PerChannel(0), symmetric=True), "int8 symmetric per channel (axis 0)"),
        (QuantSpec(INT8, PerBlock(1, 32), symmetric=True), "int8 symmetric per block of 32 (axis 1)"),
        (QuantSpec(INT4, PerBlock(0, 64), True, full_range=True), "int4 full range per block of 64 (axis 0)"),
        (QuantSpec(NF4, PerBlock(1, 64), scales=Scales.DOUBLE), "nf4 per block of 64 (axis 1), double scales"),
        (QuantSpec(MXFP4, PerBlock(1, 32), scales=Scales.POWER_OF_TWO), "mxfp4 per block of 32 (axis 1)"),
    ],
)
def test_a_spec_reads_as_a_sentence(spec: QuantSpec, text: str) -> None:
    assert str(spec) == text


def test_specs_are_values() -> None:
    assert QuantSpec(INT8, PerTensor()) == QuantSpec(INT8)
    assert len({QuantSpec(INT8, PerChannel(0)), QuantSpec(INT8, PerChannel(1)), QuantSpec(INT8, PerChannel(1))}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec(INT8).symmetric = True  # type: ignore[misc]
