"""A weight on a grid that can be learned: roundings and the ends of the range of each block, in torch.

    u = W / s + z + V,   W~ = s (clip(round(u), qmin, qmax) - z),   |V| <= 1/2
    symmetric:   s = a s0,  z = z0
    asymmetric:  s = (a h - b l) / (qmax - qmin),  z = round(qmin - b l / s),   from the planned range [l, h]

Gradients pass the rounding as if it were not there (straight-through). At V = 0, a = b = 1 the codes are those of
the plan: where they are not the nearest, W is moved to the rim of the code's cell. Scales are rounded as they are
stored; those that are stored quantized themselves are not learned, nor are zero points that are no whole number.
A weight that is 0 stays 0: its code is z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.formats import Scales
from qcompile.compiler.params import QuantParams
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.scales import store
from qcompile.compiler.specs import PerBlock, PerChannel

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

_RIM = 0.499
"""How far from its code a value may lie that still rounds to it."""

_LEAST, _MOST = 0.5, 1.25
"""Bounds of a and b."""


class LearnedGrid:
    """One weight.

    Attributes:
        parameters: what to learn: V in steps of the grid, and a and b.
    """

    def __init__(self, weight: Array, planned: QuantizedWeight, device: str = "cpu") -> None:
        import torch

        self.planned, spec = planned, planned.params.spec
        self.low, self.high = lowest(planned.params), int(spec.format.high)

        def tensor(array: Array) -> torch.Tensor:
            return torch.from_numpy(np.array(array, np.float32)).to(device)

        self.scale, self.zero = tensor(planned.params.scale), tensor(planned.params.zero_point)
        self.exact, self.codes = tensor(weight), tensor(planned.codes.astype(np.int32))
        self.pruned = (self.exact == 0) & (planned.params.zero_point.dtype == np.int32)
        scale, zero = self.spread(self.scale), self.spread(self.zero)
        steps = self.exact / scale + zero
        nearest = torch.clamp(torch.round(steps), self.low, self.high)
        moved = torch.clamp(steps, self.codes - _RIM, self.codes + _RIM)
        self.given = torch.where(nearest == self.codes, self.exact, (moved - zero) * scale)
        self.rounding = torch.zeros_like(self.exact, requires_grad=True)
        self.ends = [torch.ones_like(self.scale, requires_grad=True) for _ in range(self.learned_ends())]
        self.parameters = [self.rounding, *self.ends]

    def learned_ends(self) -> int:
        params = self.planned.params
        if params.spec.stored_scales not in (Scales.FLOAT32, Scales.FLOAT16) or params.zero_point.dtype != np.int32:
            return 0
        return 1 if params.spec.symmetric else 2

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point as they now are, in the shape of the scales."""
        import torch

        scale, zero = self.scale, self.zero
        if len(self.ends) == 1:
            scale = scale * self.ends[0]
        elif self.ends:
            low, high = self.ends[0] * (self.low - zero), self.ends[1] * (self.high - zero)
            wider = (high - low) / (self.high - self.low)
            scale, zero = scale * wider, self.low - low / wider
            zero = torch.clamp(zero + (torch.round(zero) - zero).detach(), self.low, self.high)
        if self.ends and self.planned.params.spec.stored_scales is Scales.FLOAT16:
            scale = scale + (scale.half().float() - scale).detach()
        return scale, zero

    def code(self) -> torch.Tensor:
        """The codes, differentiable."""
        import torch

        scale, zero = (self.spread(t) for t in self.grid())
        steps = self.given / scale + zero + self.rounding
        codes = torch.clamp(steps + (torch.round(steps) - steps).detach(), self.low, self.high)
        return torch.where(self.pruned, zero, codes)

    def weight(self) -> torch.Tensor:
        """W~, differentiable in `parameters`."""
        scale, zero = (self.spread(t) for t in self.grid())
        return (self.code() - zero) * scale

    def confine(self) -> None:
        """Put the parameters back into their bounds."""
        self.rounding.clamp_(-0.5, 0.5)
        for end in self.ends:
            end.clamp_(_LEAST, _MOST)

    def result(self) -> QuantizedWeight:
        """Codes and parameters as they now are."""
        import torch

        with torch.no_grad():
            scale, zero = self.grid()
            codes = self.code().cpu().numpy().astype(np.int32)
        old = self.planned.params
        if not self.ends:
            params = old
        else:
            stored, _ = store(scale.cpu().numpy(), old.spec)
            params = QuantParams(old.spec, stored.astype(np.float32), zero.cpu().numpy().astype(np.int32))
        return QuantizedWeight(params, codes.astype(self.planned.codes.dtype))

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the scales' shape, one for each weight."""
        match self.planned.params.spec.granularity:
            case PerChannel(axis):
                return values.reshape([-1 if i == axis % self.exact.ndim else 1 for i in range(self.exact.ndim)])
            case PerBlock(axis, size):
                return values.repeat_interleave(size, axis).narrow(axis, 0, self.exact.shape[axis])
        return values


def lowest(params: QuantParams) -> int:
    """The lowest code in use: symmetric signed codes leave the lowest out unless they have the full range."""
    spec = params.spec
    narrow = spec.symmetric and spec.format.is_signed and not spec.full_range
    return -int(spec.format.high) if narrow else int(spec.format.low)
