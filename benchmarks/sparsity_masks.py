"""Which weights two sparse copies of one decoder keep, and how many they have in common.

    overlap = |kept by both| / |kept by the first|      1/2 by chance for 2:4, 1 where the masks are equal

In the first block both methods read the same activations up to its second half; deeper down each reads what its own
zeros have left, so masks drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import llama_weights
from tests.zoo.model import Array

_FIRST = "model.layers.0.self_attn."


def overlaps(ours: str, theirs: str) -> dict[str, float]:
    """Over all weights of all linear layers of two files: "all", the "least" of a layer, and "first" of what queries,
    keys and values of the first block are made with."""
    return overlap(llama_weights.weights(Path(ours)), llama_weights.weights(Path(theirs)))


def overlap(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> dict[str, float]:
    """`overlaps` of weights by their names in transformers."""
    counts = {
        name: (int(np.count_nonzero((ours[name] != 0) & (theirs[name] != 0))), int(np.count_nonzero(ours[name])))
        for name in ours
        if name.endswith("_proj.weight")
    }
    first = [counts[f"{_FIRST}{part}_proj.weight"] for part in "qkv"]
    return {
        "all": _share(list(counts.values())),
        "least": min(both / kept for both, kept in counts.values()),
        "first": _share(first),
    }


def _share(counts: list[tuple[int, int]]) -> float:
    return sum(both for both, _ in counts) / sum(kept for _, kept in counts)
