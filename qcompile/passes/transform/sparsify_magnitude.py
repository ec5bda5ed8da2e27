"""Magnitude pruning: the smallest weights become zero.

    keep the largest |w| of each group of the pattern, or of the layer

W: [groups, N, K]; the measure of a row, column or block is the sum of its squares. It looks at no activation and
needs no samples, unless the weights that stay are to be refitted. Source: Han et al., "Learning both Weights and
Connections for Efficient Neural Networks", 2015; 2:4 as in Mishra et al.,
"Accelerating Sparse Deep Neural Networks", 2021.

Errors: RecipeError for a name under `layers` that matches nothing; DataError for a mask that is no input.
"""

from __future__ import annotations

from typing import Any, ClassVar

from qcompile.compiler.gram import Gram
from qcompile.passes.transform.sparsity.arrangement import Arrangement
from qcompile.passes.transform.sparsity.sparsify import Sparsify

Array = Any  # numpy.ndarray or torch.Tensor


class SparsifyMagnitude(Sparsify):
    """Set the smallest weights to zero."""

    name: ClassVar[str] = "sparsify-magnitude"

    def thinned(self, weight: Array, wanted: Arrangement, gram: Gram | None) -> Array:
        return weight * wanted.kept(weight**2)
