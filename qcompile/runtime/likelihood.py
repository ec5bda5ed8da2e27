"""How well logits foresee a text, and how close they are to those of another model.

surprise    -log p(t)                        of the token t that came
divergence  KL(q || p) = sum q (log q - log p)   q: the reference
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ROWS = 64
"""Rows at once: a vocabulary has up to 250,000 tokens, each a number of 8 bytes here."""


def surprises(logits: Array, tokens: Array) -> Array:
    """In nats, for each row of `logits` [n, vocabulary] the token that came: float64 [n]."""
    found = np.empty(len(tokens))
    for rows in _parts(len(tokens)):
        likely = _log_softmax(logits[rows])
        found[rows] = -likely[np.arange(len(likely)), tokens[rows]]
    return found


def divergences(logits: Array, reference: Array) -> Array:
    """In nats, for each row: float64 [n]."""
    found = np.empty(len(logits))
    for rows in _parts(len(logits)):
        expected, given = _log_softmax(reference[rows]), _log_softmax(logits[rows])
        chance = np.exp(expected)
        with np.errstate(invalid="ignore"):  # tokens that both rule out
            found[rows] = np.where(chance > 0, chance * (expected - given), 0).sum(1)
    return found


def _log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(1, keepdims=True)))


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]
