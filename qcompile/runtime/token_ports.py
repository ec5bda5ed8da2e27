"""What a language model takes and gives, by the names that exporters use.

    input_ids [batch, length]             the tokens
    attention_mask [batch, total]         1 for each token, those in the cache included
    position_ids [batch, length]          the place of each token
    token_type_ids [batch, length]        0
    past_key_values.N.key, .value         what an earlier run gave as present.N.key, .value; empty before the first
    logits [batch, length, vocabulary]    what comes next, for each token

All but the tokens are filled in here, so a window of tokens is all that a caller needs. Decoders without a cache, and
encoders, have fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompile.errors import ModelError
from qcompile.runtime.arrays import shape_of
from qcompile.runtime.ports import Port

Array = np.ndarray[Any, Any]

TOKENS, MASK, POSITIONS, SEGMENTS = "input_ids", "attention_mask", "position_ids", "token_type_ids"
_PAST = "past"


@dataclass(frozen=True)
class TokenPorts:
    """The ports of one model.

    Attributes:
        inputs: by name.
        caches: the output that each input of a cache takes its next value from.
        length: how many tokens one run takes, None where any number.
    """

    inputs: dict[str, Port]
    caches: dict[str, str]
    length: int | None

    @staticmethod
    def of(inputs: Sequence[Port], outputs: Sequence[str], where: str) -> TokenPorts:
        """Tell the ports of a model from their names.

        Args:
            where: the model, for errors.

        Raises:
            ModelError: there is no `input_ids`, or an input that text does not fill.
        """
        named = {port.name: port for port in inputs}
        if TOKENS not in named or len(named[TOKENS].shape) != 2:
            raise ModelError(
                "the model takes no tokens: it has no input 'input_ids' [batch, length]",
                where=where,
                hint=f"its inputs are {'; '.join(map(str, inputs))}",
            )
        caches = {}
        for name, port in named.items():
            if name.startswith(_PAST):
                caches[name] = _present(name, outputs, where)
                _length_axis(port, where)
            elif name not in (TOKENS, MASK, POSITIONS, SEGMENTS) or len(port.shape) != 2:
                raise ModelError(
                    f"text does not fill the input {port}",
                    where=where,
                    hint="known are input_ids, attention_mask, position_ids, token_type_ids, each [batch, length], "
                    "and past_key_values.*; give other inputs as .npz files",
                )
        return TokenPorts(named, caches, named[TOKENS].shape[1])

    @property
    def quantized_caches(self) -> bool:
        """Whether keys and values are kept as codes."""
        return any("int" in self.inputs[name].dtype or "float8" in self.inputs[name].dtype for name in self.caches)

    def feed(self, tokens: Array, cache: Mapping[str, Array]) -> dict[str, Array]:
        """One run's inputs.

        Args:
            tokens: [length].
            cache: what `cache_of` took from the run before; empty at the beginning of a text.
        """
        before = self._cached(cache)
        whole = {
            TOKENS: tokens,
            MASK: np.ones(before + len(tokens)),
            POSITIONS: np.arange(before, before + len(tokens)),
            SEGMENTS: np.zeros(len(tokens)),
        }
        feed = {
            name: array[None].astype(self.inputs[name].dtype) for name, array in whole.items() if name in self.inputs
        }
        return feed | {name: cache[name] if name in cache else _zeros(self.inputs[name], 0) for name in self.caches}

    def cache(self, length: int) -> dict[str, Array]:
        """A cache of `length` tokens of one text, all zeros."""
        return {name: _zeros(self.inputs[name], length) for name in self.caches}

    def cache_of(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The cache as a run left it."""
        return {past: outputs[present] for past, present in self.caches.items()}

    def _cached(self, cache: Mapping[str, Array]) -> int:
        name = next(iter(cache), None)
        return shape_of(cache[name])[_length_axis(self.inputs[name])] if name is not None else 0


def _present(past: str, outputs: Sequence[str], where: str) -> str:
    """The output that continues an input: past_key_values.0.key is called present.0.key or present_key_values.0.key."""
    for name in (past.replace("past_key_values", "present", 1), past.replace("past", "present", 1)):
        if name in outputs:
            return name
    raise ModelError(
        f"no output continues the cache '{past}'",
        where=where,
        hint=f"it would be called '{past.replace('past_key_values', 'present', 1)}'",
    )


def _length_axis(port: Port, where: str = "") -> int:
    """The last free dimension of a cache is its length, another one its batch."""
    free = [axis for axis, size in enumerate(port.shape) if size is None]
    if len(free) not in (1, 2):
        raise ModelError(
            f"it cannot be told which dimension of the cache {port} is its length",
            where=where,
            hint="export the model with the batch and the length of the cache as its free dimensions",
        )
    return free[-1]


def _zeros(port: Port, length: int) -> Array:
    """A cache of one text after `length` tokens."""
    import ml_dtypes  # noqa: F401  # lets numpy know the names of 8-bit floats

    shape = [1 if size is None else size for size in port.shape]
    shape[_length_axis(port)] = length
    return np.zeros(shape, port.dtype)
