"""A layer without some of what it reads: the columns of its matrix that stay, as they are or solved anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompile.compiler.gram import Gram
from qcompile.compiler.refit import on_columns

Array = Any  # numpy.ndarray or torch.Tensor


def without(weight: Array, kept: npt.NDArray[np.intp]) -> Array:
    """`weight`, [groups, N, K], with zeros in the columns that are not kept."""
    found = array_namespace(weight).zeros_like(weight)
    found[:, :, kept] = weight[:, :, kept]
    return found


def refitted(weight: Array, gram: Gram, kept: npt.NDArray[np.intp]) -> Array:
    """The same with the columns that stay solved anew, by least squares (refit.py)."""
    found = array_namespace(weight).zeros_like(weight)
    found[:, :, kept] = on_columns(weight, gram, np.tile(kept, (weight.shape[0], 1)))
    return found
