"""A site: constants to divide and constants to multiply by one vector s > 0, so that the function stays.

    x' = x / s  for every value between them,   producers: c / s,   consumers: W * s.

Source: Nagel et al. 2019 (arXiv:1906.04721) for convolutions, Xiao et al. 2022 (arXiv:2211.10438) for
transformers. `find_sites` (search.py) finds the sites of a graph, `apply` (apply.py) folds a vector into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Groups = npt.NDArray[np.intp]
"""For each element along some axes, which entry of s belongs to it; -1 stands for the factor 1."""

Vector = npt.NDArray[np.float64]


class Family(StrEnum):
    """What lies between the two ends of a site."""

    NORM = "norm"
    ATTENTION = "attention value"
    GATE = "gated product"
    HOMOGENEOUS = "activation"
    LINEAR = "linear"
    INSERTED = "inserted Mul"


@dataclass(frozen=True, eq=False)
class Factor:
    """A constant input of a node that takes the scale.

    Attributes:
        node: name of the node.
        index: position of the constant among its inputs.
        groups: broadcasts against the constant.
        weight: it is the weight of a linear layer.
    """

    node: str
    index: int
    groups: Groups
    weight: bool


@dataclass(frozen=True, eq=False)
class Site:
    """Nodes and values are named, so that a site found in a model can be applied to a clone or a block of it.

    Attributes:
        scales: length of s. Channels that must share a scale share an entry of it.
        divided: constants of the producers, divided by s.
        multiplied: constants of the consumers, multiplied by s.
        inputs: what the linear consumers read: value -> groups of its channels, shape [C].
        axes: the channel axis of each of `inputs`.
        values: every value that is divided: name -> groups that broadcast against it.
        inserted: the value behind which a Mul by 1 / s is inserted for the consumers; empty where all folds.
    """

    family: Family
    scales: int
    divided: tuple[Factor, ...]
    multiplied: tuple[Factor, ...]
    inputs: Mapping[str, Groups]
    axes: Mapping[str, int]
    values: Mapping[str, Groups]
    inserted: str = ""

    @property
    def title(self) -> str:
        """The nodes of both ends, for reports."""
        ends = [", ".join(dict.fromkeys(f.node for f in factors)) for factors in (self.divided, self.multiplied)]
        return f"{self.inserted or ends[0]} -> {ends[1]}"


@dataclass(frozen=True, eq=False)
class Refusal:
    """The input of linear layers whose scale no producer can take.

    Attributes:
        reason: why, as the end of a sentence about `value`.
        explicit: a site that inserts a Mul there instead, which costs time.
    """

    value: str
    reason: str
    explicit: Site


def factors(groups: Groups, scales: Vector) -> Vector:
    """The factor of each element of `groups`."""
    return np.append(scales, 1.0)[groups]
