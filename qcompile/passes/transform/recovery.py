"""How a layer makes good for what was taken from it or before it: its weights solved anew, its bias for what the mean
misses.

    V = argmin E||V (x~ - E x~) - W (x - E x)||^2 over the weights that stay,   b~ = b + W E x - V E x~

x, x~: what the layer reads in the float model and in the edited one. A layer that shall have no bias is solved through
the origin instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.gram import Gram
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.refit import relative_error
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.layer_bias import add_to_bias
from qcompile.runtime.device import fetch

Array = Any  # numpy.ndarray or torch.Tensor
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Recovery:
    """What becomes of one layer.

    Attributes:
        weight: V, [groups, N, K].
        bias: the change of its bias, one value for each output; None where it has none.
        errors: of its result relative to what it was, without and with refitting.
    """

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    errors: tuple[float, float]

    @classmethod
    def of(
        cls, weight: Array, left: Array, gram: Gram, *, refitted: Callable[[Gram], Array] | None, bias: bool
    ) -> Recovery:
        """That of a layer by what it reads in both models.

        Args:
            weight: W.
            left: what is left of it without refitting.
            refitted: V for the sums over what the layer reads, around the means with a bias; None leaves it as it is.
            bias: the layer shall have one.
        """
        around = gram.centred() if bias else gram
        solved = left if refitted is None else refitted(around)
        before, after = (relative_error(weight, v, around) for v in (left, solved))
        if not bias:
            return cls(fetch(solved), None, (before, after))
        mean, drift = (m[:, :, None] for m in gram.means)
        change = weight @ (mean + drift) - solved @ mean
        return cls(fetch(solved), fetch(change).reshape(-1), (before, after))

    def arrays(self, layer: str) -> Arrays:
        """Itself by names that begin with that of its layer."""
        found = {layer: self.weight, f"{layer} errors": np.array(self.errors)}
        return found if self.bias is None else found | {f"{layer} bias": self.bias}


def write(layer: LinearLayer, found: Mapping[str, Any], names: Names, made_by: str) -> tuple[float, float]:
    """Let `layer` be what `Recovery.arrays` says of it; the errors."""
    layer.write(found[layer.name])
    if f"{layer.name} bias" in found:
        add_to_bias(layer, found[f"{layer.name} bias"], names, made_by)
    before, after = found[f"{layer.name} errors"]
    return float(before), float(after)
