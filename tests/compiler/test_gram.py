"""Sums around the means are those of centred rows, however the rows arrive."""

from __future__ import annotations

import numpy as np

from qcompile.compiler.gram import Gram


def test_centred_sums() -> None:
    rng = np.random.default_rng(0)
    x, exact = (rng.standard_normal((2, 40, 5)).astype(np.float32) + 3 for _ in range(2))
    gram = Gram.of(x[:, :25], exact[:, :25])
    gram.merge(Gram.of(x[:, 25:], exact[:, 25:]))
    a, m = (v - v.mean(axis=1, keepdims=True) for v in (x.astype(np.float64), (exact - x).astype(np.float64)))
    found = gram.centred()
    assert found.drift is not None
    for got, left, right in ((found.matrix, a, a), (found.drift[0], m, a), (found.drift[1], m, m)):
        np.testing.assert_allclose(got, left.swapaxes(1, 2) @ right, atol=1e-3)
    np.testing.assert_allclose(gram.means[0], x.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(gram.means[1], (exact - x).mean(axis=1), atol=1e-5)
    assert Gram.of(x).means[0].shape == (2, 5)
