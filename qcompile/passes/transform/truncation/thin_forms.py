"""How one layer can be written as two thin ones, and what is decomposed to find them.

    channels   W = A B                      B: [r, K], A: [N, r]: a product, or a convolution of the same kernel with r
                                            filters, and one of 1 x 1 behind it
    strips     W_ncij = sum_r A_rnj B_rci   a convolution of kh x 1 with r filters, and one of 1 x kw behind it

Both are a truncated decomposition of one matrix, W itself or its reordering [(n, j), (c, i)], in the metric of what the
first of the two reads: for strips the columns of the window, whose moments are summed over j. Both are W' = A' B' with
a B' of known entries, so that A' can be refitted in closed form.

Source: Zhang et al., "Accelerating Very Deep Convolutional Networks", 2015 (channels); Jaderberg et al., "Speeding up
Convolutional Neural Networks with Low Rank Expansions", 2014 (strips). Shapes: weights [groups, N, K], metrics [groups,
K, K], K = C kh kw; strips have one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.low_rank import Factors

Array = Any  # numpy.ndarray or torch.Tensor


class ThinForm(Protocol):
    """One way of writing a layer as two."""

    @property
    def name(self) -> str: ...

    @property
    def full(self) -> int:
        """The rank from which on nothing is lost."""
        ...

    def size(self, rank: int) -> int:
        """How many weights the two have."""
        ...

    def work(self, rank: int) -> float:
        """Multiplications for each position of the result."""
        ...

    def matrix(self, weight: Array) -> Array:
        """What is decomposed."""
        ...

    def metric(self, metric: Array) -> Array:
        """The metric of its columns."""
        ...

    def expanded(self, factors: Factors) -> Factors:
        """Factors of `matrix` as those of W."""
        ...

    def compact(self, factors: Factors) -> Factors:
        """The reverse of `expanded`."""
        ...


@dataclass(frozen=True)
class Channels:
    """Few channels between the inputs and the outputs of a layer."""

    groups: int
    outputs: int
    inputs: int
    name: str = "channels"

    @property
    def full(self) -> int:
        return min(self.outputs, self.inputs)

    def size(self, rank: int) -> int:
        return self.groups * rank * (self.outputs + self.inputs)

    def work(self, rank: int) -> float:
        return self.size(rank)

    def matrix(self, weight: Array) -> Array:
        return weight

    def metric(self, metric: Array) -> Array:
        return metric

    def expanded(self, factors: Factors) -> Factors:
        return factors

    def compact(self, factors: Factors) -> Factors:
        return factors


@dataclass(frozen=True)
class Strips:
    """Few combinations of the columns of a convolution's window.

    Attributes:
        stride: along the width, which the first of the two does not take.
    """

    outputs: int
    channels: int
    height: int
    width: int
    stride: int
    name: str = "strips"

    @property
    def full(self) -> int:
        return min(self.outputs * self.width, self.channels * self.height)

    def size(self, rank: int) -> int:
        return rank * (self.outputs * self.width + self.channels * self.height)

    def work(self, rank: int) -> float:
        return rank * (self.outputs * self.width + self.channels * self.height * self.stride)

    def matrix(self, weight: Array) -> Array:
        xp = array_namespace(weight)
        parted = weight.reshape((self.outputs, self.channels, self.height, self.width))
        turned = xp.permute_dims(parted, (0, 3, 1, 2))
        return turned.reshape((1, self.outputs * self.width, self.channels * self.height))

    def metric(self, metric: Array) -> Array:
        columns = self.channels * self.height
        parted = metric.reshape((1, columns, self.width, columns, self.width))
        return sum(parted[:, :, j, :, j] for j in range(self.width))

    def expanded(self, factors: Factors) -> Factors:
        """B' has r rows for each column of the window, (r, j), and A' has these as columns."""
        xp = array_namespace(factors.right)
        rank, columns = factors.rank, self.channels * self.height
        right = xp.zeros(
            (1, rank, self.width, columns, self.width), dtype=factors.right.dtype, device=device(factors.right)
        )
        for j in range(self.width):
            right[:, :, j, :, j] = factors.right
        left = factors.left.reshape((self.outputs, self.width, rank)).swapaxes(1, 2)
        return Factors(
            left.reshape((1, self.outputs, rank * self.width)),
            right.reshape((1, rank * self.width, columns * self.width)),
        )

    def compact(self, factors: Factors) -> Factors:
        rank, columns = factors.rank // self.width, self.channels * self.height
        right = factors.right.reshape((1, rank, self.width, columns, self.width))[:, :, 0, :, 0]
        left = factors.left.reshape((self.outputs, rank, self.width)).swapaxes(1, 2)
        return Factors(left.reshape((1, self.outputs * self.width, rank)), right)


def thin_forms(layer: LinearLayer) -> list[ThinForm]:
    """The ways that are there for `layer`: none for a depthwise convolution, whose outputs read one channel each."""
    groups, outputs, inputs = layer.shape
    if layer.is_depthwise:
        return []
    forms: list[ThinForm] = [Channels(groups, outputs, inputs)]
    if layer.node.op_type != "Conv":
        return forms
    assert layer.weight.shape is not None
    _, channels, *kernel = (int(d) for d in layer.weight.shape.numpy())
    if groups == 1 and len(kernel) == 2 and min(kernel) > 1:
        strides = layer.node.attributes.get_ints("strides") or [1, 1]
        forms.append(Strips(outputs, channels, kernel[0], kernel[1], strides[1]))
    return forms
