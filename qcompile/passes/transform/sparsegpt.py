"""SparseGPT: weights become zero in turn, and those behind them make good what each took.

    min ||W X - V X||^2 = tr (W - V) H (W - V)^T,  V zero where the mask says,   H = R R^T,  R upper triangular
    a_j = w_j + sum_{i<j} (w_i - v_i) R_ij / R_jj,   score_ij = a_ij^2 R_jj^2 = a_ij^2 / [H^-1]_jj,   v_j = a_j or 0

[H^-1]_jj is that of H without the inputs before j. The mask of a group of inputs is chosen when the sweep reaches it,
by what the weights are then: M inputs of a pattern N:M, where weights of a row compete; 128 inputs of single weights,
where those of all rows do. W: [groups, N, K]; errors go forward as in GPTQ (error_feedback.py). H diagonal: the mask
is Wanda's. The weights that stay are then refitted against the whole row, which the sweep cannot see.
Source: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023.

Errors: DataError without samples, for a mask that is no input of the model, or for activations that are not finite;
RecipeError for rows, columns and blocks, or a name under `layers` that matches nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from array_api_compat import array_namespace
from pydantic import Field

from qcompile.compiler.gram import Gram
from qcompile.passes.quantize.error_feedback import BLOCK, feedback, rounded
from qcompile.passes.transform.sparsity.arrangement import Arrangement
from qcompile.passes.transform.sparsity.sparsify import Sparsify

Array = Any  # numpy.ndarray or torch.Tensor


class SparseGpt(Sparsify):
    """Set weights to zero one input after the other, the others making good for them."""

    name: ClassVar[str] = "sparsegpt"
    needs_samples: ClassVar[bool] = True

    damping: float = Field(
        default=0.01, gt=0, description="share of the mean of H's diagonal that is added to the diagonal"
    )

    def _check(self, wanted: Arrangement) -> None:
        if wanted.block != (1, 1):
            raise ValueError(f"sparsegpt has no {wanted.text}; use N:M or unstructured, or the pass wanda")

    def thinned(self, weight: Array, wanted: Arrangement, gram: Gram | None) -> Array:
        assert gram is not None
        return swept(weight, wanted, gram, self.damping)


def swept(weight: Array, wanted: Arrangement, gram: Gram, damping: float) -> Array:
    """V for W = `weight`."""
    xp = array_namespace(weight)
    back = feedback(gram.matrix, damping, act_order=False)
    silent = xp.linalg.diagonal(gram.matrix) == 0
    sharpness = xp.where(silent, 0, back.diagonal**2)[:, None, :]
    inputs = xp.asarray(weight.swapaxes(1, 2), copy=True)
    kept, found = xp.zeros_like(inputs, dtype=xp.bool), xp.empty_like(inputs)

    def choose(start: int, aims: Array) -> None:
        columns = slice(start, start + aims.shape[1])
        scores = aims.swapaxes(1, 2) ** 2 * sharpness[:, :, columns]
        kept[:, columns] = wanted.kept(scores).swapaxes(1, 2)

    def nearest(j: int, aim: Array) -> tuple[Array, Array]:
        values = xp.where(kept[:, j], aim, 0)
        return values, values

    rounded(inputs, back, nearest, found, wanted.pattern.group if wanted.pattern else BLOCK, choose)
    return found.swapaxes(1, 2)
