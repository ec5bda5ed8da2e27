"""What a tensor shall become: a format, a granularity and a symmetry, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.compiler.formats import NumericFormat, Scales


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
        full_range: of symmetric integers, the value of largest magnitude has the lowest code: no code is unused,
            and the scale has the opposite sign of that value.
        scales: how the scales are stored; None: as the format says.
    """

    format: NumericFormat
    granularity: Granularity = PerTensor()
    symmetric: bool = False
    full_range: bool = False
    scales: Scales | None = None

    @property
    def stored_scales(self) -> Scales:
        return self.format.scales if self.scales is None else self.scales

    def __str__(self) -> str:
        match self.granularity:
            case PerTensor():
                grain = "per tensor"
            case PerChannel(axis):
                grain = f"per channel (axis {axis})"
            case PerBlock(axis, size):
                grain = f"per block of {size} (axis {axis})"
        words = [self.format.name]
        if self.symmetric:
            words.append("full range" if self.full_range else "symmetric")
        elif self.format.is_integer:
            words.append("asymmetric")
        if self.scales not in (None, self.format.scales):
            grain += f", {self.scales} scales"
        return " ".join([*words, grain])
