"""Wanda: the weights become zero that matter least for what the layer gives, size of their inputs included.

    score_ij = w_ij^2 sum_r x_rj^2 = w_ij^2 H_jj        what the output i loses in energy without that weight

Weights compete inside their group of the pattern, single ones inside the row of their output; rows, columns and blocks
by the sum of their scores. W: [groups, N, K], H = X X^T behind the thinned layers before. Source: Sun et al., "A Simple
and Effective Pruning Approach for Large Language Models", 2023 (arXiv:2306.11695), whose score is the square root.

Errors: DataError without samples, for a mask that is no input of the model, or for activations that are not finite;
RecipeError for a name under `layers` that matches nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from array_api_compat import array_namespace

from qcompile.compiler.gram import Gram
from qcompile.passes.transform.sparsity.arrangement import Arrangement
from qcompile.passes.transform.sparsity.sparsify import Sparsify

Array = Any  # numpy.ndarray or torch.Tensor


class Wanda(Sparsify):
    """Set the weights to zero whose size and inputs matter least."""

    name: ClassVar[str] = "wanda"
    needs_samples: ClassVar[bool] = True

    def thinned(self, weight: Array, wanted: Arrangement, gram: Gram | None) -> Array:
        assert gram is not None
        energy = array_namespace(weight).linalg.diagonal(gram.matrix)
        return weight * wanted.kept(weight**2 * energy[:, None, :], rows_apart=True)
