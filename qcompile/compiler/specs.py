"""What a tensor shall become: a format, a granularity and a symmetry, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.compiler.formats import NumericFormat


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`."""

    axis: int


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of `size` elements along `axis`."""

    axis: int
    size: int


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True)
class QuantSpec:
    """Format, granularity and symmetry of one quantized tensor.

    Attributes:
        symmetric: the zero point is the code of the middle (0 for signed types), and for signed
            integers the lowest code is left unused, so that -x and x have codes -q and q.
    """

    format: NumericFormat
    granularity: Granularity = PerTensor()
    symmetric: bool = False

    def __str__(self) -> str:
        match self.granularity:
            case PerTensor():
                grain = "per tensor"
            case PerChannel(axis):
                grain = f"per channel (axis {axis})"
            case PerBlock(axis, size):
                grain = f"per block of {size} (axis {axis})"
        return f"{self.format.name} {'symmetric' if self.symmetric else 'asymmetric'} {grain}"
