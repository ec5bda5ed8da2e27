"""The two factors of a layer: truncated in the metric of a method, refitted, and made ready to be quantized.

    metric   plain: 1     asvd: diag(rms x_j)     svd-llm: X X^T
    refit    A = argmin ||A B X - W X_float||^2, for the B that was found
    even     A C^T, C B where A has orthonormal columns and C is the cosine transform

Refitting is damped by r / rows (refit.py): with 16 and 64 sentences the embedding of all-MiniLM-L6-v2 came 1 to 3 % of
the squared error nearer to float so than with a hundredth. Evening changes nothing in float; but what lies between
the factors then is of like size in all its r channels, where it fell as the singular values do, so one scale fits
them all, and its noise enters the result as it is.

Source: Yuan et al., "ASVD: Activation-aware Singular Value Decomposition", 2023 (arXiv:2312.05821), whose scales are
(mean |x_j|)^(1/2): the root mean square, which is on the diagonal of X X^T, is in its place; Wang et al., "SVD-LLM",
2024 (arXiv:2403.07378). Shapes: W [groups, N, K]; float64.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device

from qcompile.compiler.gram import Gram
from qcompile.compiler.low_rank import Decomposition, Factors, decomposed
from qcompile.compiler.refit import in_span
from qcompile.passes.transform.truncation.thin_forms import ThinForm
from qcompile.runtime.device import Device

Array = Any  # numpy.ndarray or torch.Tensor
Method = Literal["plain", "asvd", "svd-llm"]


def decomposition(form: ThinForm, weight: Array, gram: Gram | None, method: Method, damping: float) -> Decomposition:
    """The directions of `weight`, written in `form`, in the metric of `method`.

    Args:
        gram: of what the layer reads; the plain method needs none.
        damping: share of the mean of the metric's diagonal that is added to it.
    """
    metric = None if gram is None or method == "plain" else form.metric(_metric(gram, method, damping))
    return decomposed(form.matrix(weight), metric)


def _metric(gram: Gram, method: Method, damping: float) -> Array:
    xp = array_namespace(gram.matrix)
    h = xp.astype(gram.matrix, xp.float64) / max(gram.rows, 1)
    unit = xp.eye(h.shape[1], dtype=xp.float64, device=device(h))
    if method == "asvd":
        h = xp.sqrt(xp.linalg.diagonal(h))[:, None, :] * unit
    added = damping * xp.mean(xp.linalg.diagonal(h), axis=1) + float(np.finfo(np.float32).tiny)
    return h + added[:, None, None] * unit


def refitted(form: ThinForm, factors: Factors, weight: Array, gram: Gram) -> Factors:
    """`factors` of what `form` decomposes with another left one: that which is best for the outputs of the layer."""
    xp = array_namespace(weight)
    basis, _ = xp.linalg.qr(factors.right.swapaxes(1, 2))  # no direction is lost where the weight has a lower rank
    spanned = form.expanded(Factors(factors.left, basis.swapaxes(1, 2)))
    left = xp.astype(in_span(weight, gram, spanned.right), xp.float64)
    return form.compact(Factors(left, spanned.right))


def evened(factors: Factors, on: Device) -> Factors:
    """The same product by a left factor of orthonormal columns, its directions mixed."""
    xp, rank = array_namespace(factors.left), factors.rank
    left, rest = xp.linalg.qr(factors.left)
    places = np.arange(rank)
    mixing = np.cos(np.pi / rank * (places[:, None] + 0.5) * places) * np.sqrt(np.where(places, 2, 1) / max(rank, 1))
    mixing = on.put(mixing)
    return Factors(left @ mixing.T, mixing @ (rest @ factors.right))
