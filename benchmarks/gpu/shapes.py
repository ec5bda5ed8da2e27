"""Layers of real models, what each costs at least, and rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ROWS = (1, 8, 32, 128, 512, 2048, 8192)
_IMAGE = 197
"""Tokens of one image of ViT-L: a number of rows that is no multiple of anything."""

LAYERS = {
    "Llama 8B": {"qkv": (6144, 4096), "o": (4096, 4096), "gate+up": (28672, 4096), "down": (4096, 14336)},
    "BERT large": {"qkv": (3072, 1024), "o": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)},
    "ViT-L": {"qkv": (3072, 1024), "o": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)},
}
"""N and K of the linear layers."""


@dataclass(frozen=True)
class Shape:
    """y[m, n] = x[m, k] w[n, k]^T of one layer of a model."""

    model: str
    layer: str
    m: int
    n: int
    k: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k

    def bytes(self, x: float, w: float, y: float) -> int:
        """Bytes to move at least, with so many bytes an element."""
        return round(self.m * self.k * x + self.n * self.k * w + self.m * self.n * y)


def shapes() -> Iterator[Shape]:
    """All that is measured, the small ones of a layer first."""
    for model, layers in LAYERS.items():
        for layer, (n, k) in layers.items():
            for m in (_IMAGE, 8 * _IMAGE) if model == "ViT-L" else ROWS:
                yield Shape(model, layer, m, n, k)


def copies(size: int, cache: int) -> int:
    """How many sets of `size` bytes are gone through in turns, so that each is out of a cache of `cache` bytes."""
    return min(max(-(-2 * cache // size), 1), 64)


def tera(operations: float, microseconds: float) -> float:
    """Operations in TFLOP/s (or TOP/s)."""
    return operations / microseconds / 1e6


def giga(size: float, microseconds: float) -> float:
    """Bytes in GB/s, GB being 1e9 bytes."""
    return size / microseconds / 1e3


def least_microseconds(size: float, gigabytes: float, operations: float = 0, teraoperations: float = 1) -> float:
    """What memory and arithmetic at their measured best would take: the larger of the two."""
    return max(size / gigabytes / 1e3, operations / teraoperations / 1e6)
