"""How zeros are arranged in a weight, and which weights stay in such an arrangement.

2:4            of every 4 weights in a row along what is summed over, 2 stay; N:M in general
unstructured   single weights go
rows, columns  all weights of one output, or of one input, go or stay together
16x1           so do blocks of 16 outputs and 1 input; RxC in general
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.weight_pattern import Pattern

Array = Any  # numpy.ndarray or torch.Tensor

_NAMED = {"unstructured": (1, 1), "rows": (1, 0), "columns": (0, 1)}


@dataclass(frozen=True)
class Arrangement:
    """What shall become zero.

    Attributes:
        text: how the recipe writes it.
        pattern: N:M; None where a share of blocks goes.
        block: outputs and inputs of one block; 0 stands for all there are.
        ratio: the share of the blocks that go.
    """

    text: str
    pattern: Pattern | None
    block: tuple[int, int]
    ratio: float

    @classmethod
    def parse(cls, text: str, ratio: float | None = None) -> Arrangement:
        """The arrangement that `text` names; without a ratio, half of the blocks go.

        Raises:
            ValueError: it names none, or a pattern that says the ratio itself.
        """
        if ":" in text:
            pattern = Pattern.parse(text)
            if ratio is not None:
                raise ValueError(f"{text} says how many weights go; leave out the ratio")
            return cls(text, pattern, (1, 1), 1 - pattern.kept / pattern.group)
        block = _NAMED.get(text)
        if block is None and (found := re.fullmatch(r"(\d+)x(\d+)", text)):
            block = int(found[1]), int(found[2])
        if block is None or (text not in _NAMED and 0 in block):
            raise ValueError(f"'{text}' is no pattern: write 2:4, unstructured, rows, columns, or blocks such as 16x1")
        return cls(text, None, block, 0.5 if ratio is None else ratio)

    def __str__(self) -> str:
        if self.pattern is not None:
            return self.text
        return f"{self.ratio:.0%} {self.text if self.text in _NAMED else f'blocks {self.text}'}"

    def obstacle(self, layer: LinearLayer) -> str:
        """Why the weight of a layer cannot be arranged so, empty when it can."""
        _, outputs, _ = layer.shape
        inputs = layer.channels
        if self.pattern is not None and layer.is_depthwise:
            return "it is a depthwise convolution"
        if self.pattern is not None and inputs % self.pattern.group:
            return f"it sums over {inputs} channels, no multiple of {self.pattern.group}"
        if any(size and n % size for n, size in zip((outputs, inputs), self.block, strict=True)):
            return f"{outputs} outputs and {inputs} inputs are no whole number of blocks"
        return ""

    def kept(self, scores: Array, rows_apart: bool = False) -> Array:
        """True for the weights that stay: those of the largest scores [groups, N, K], the first of equal ones.

        Args:
            rows_apart: single weights compete inside their row, not inside the layer.
        """
        xp = array_namespace(scores)
        if self.pattern is not None:
            return self.pattern.largest(scores)
        blocks = _blocks(scores, self.block)
        sums = blocks.sum(axis=(2, 4))
        rows = sums if rows_apart and self.block == (1, 1) else xp.reshape(sums, (len(sums), 1, -1))
        order = xp.argsort(rows, axis=2, descending=True, stable=True)
        kept = xp.argsort(order, axis=2) < rows.shape[2] - round(self.ratio * rows.shape[2])
        whole = xp.reshape(kept, sums.shape)[:, :, None, :, None]
        return xp.reshape(xp.broadcast_to(whole, blocks.shape), scores.shape)

    def holds(self, weight: npt.NDArray[Any]) -> bool:
        """Whether `weight`, [groups, N, K], is arranged so already."""
        if self.pattern is not None:
            return self.pattern.holds(weight)
        empty = ~_blocks(weight, self.block).any(axis=(2, 4))
        return bool((empty.reshape(len(empty), -1).sum(axis=1) >= round(self.ratio * empty[0].size)).all())


def channels_last(layer: LinearLayer) -> npt.NDArray[np.intp]:
    """The order of K in which the channels of one tap of a convolution lie together: what N:M counts."""
    _, _, inputs = layer.shape
    return np.arange(inputs).reshape(layer.channels, -1).T.ravel()


def _blocks(matrix: Array, block: tuple[int, int]) -> Array:
    """[groups, blocks, outputs of one, blocks, inputs of one]."""
    groups, n, k = matrix.shape
    outputs, inputs = block[0] or n, block[1] or k
    return matrix.reshape((groups, n // outputs, outputs, k // inputs, inputs))
