"""A decoder at work: logits for every token of a window, read at once or step by step through its cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qcompile.errors import ModelError, UsageError
from qcompile.runtime import arrays
from qcompile.runtime.session import Session
from qcompile.runtime.token_ports import TokenPorts

Array = np.ndarray[Any, Any]

_LOGITS = "logits"


class LanguageModel:
    """A session that is fed tokens.

    Attributes:
        ports: its inputs and outputs.
        vocabulary: how many tokens it knows, None where the file does not say.

    Raises:
        ModelError: the model takes no tokens, or gives no logits.
    """

    def __init__(self, session: Session) -> None:
        self.session, where = session, str(session.path)
        outputs = [port.name for port in session.outputs]
        self.ports = TokenPorts.of(session.inputs, outputs, where)
        caches = self.ports.caches.values()
        others = [p for p in session.outputs if p.name not in caches and p.dtype.startswith(("float", "bfloat"))]
        named = [p for p in others if p.name == _LOGITS] or [p for p in others if len(p.shape) == 3]
        if len(named) != 1:
            raise ModelError(
                "the model gives no logits, one output [batch, length, vocabulary]",
                where=where,
                hint=f"its outputs are {'; '.join(map(str, session.outputs))}; export it with its head",
            )
        self._logits = named[0].name
        self.vocabulary = named[0].shape[-1] if named[0].shape else None

    def step_of(self, window: int, step: int | None) -> int:
        """How many tokens a run reads: `step`, or by itself the whole window, and less where the cache is quantized.

        A cache that is never read again would hide what its codes cost.

        Raises:
            UsageError: the model cannot read so many.
        """
        ports, where = self.ports, str(self.session.path)
        usual = ports.length or (max(window // 8, 1) if ports.quantized_caches else window)
        chosen = usual if step is None else step
        if chosen < 1:
            raise UsageError(f"a step must be at least 1 token, not {chosen}")
        if ports.length not in (None, chosen) or window % chosen:
            fixed = f"one run of the model takes {ports.length} tokens" if ports.length else f"{chosen} tokens a step"
            raise UsageError(f"{fixed}, which does not go into windows of {window}", where=where)
        if chosen < window and not ports.caches:
            raise UsageError(
                f"a window of {window} tokens cannot be read {chosen} at a time: the model has no cache",
                where=where,
                hint=f"--window {ports.length}" if ports.length else "leave out the step",
            )
        return chosen

    def read(self, tokens: Array, step: int) -> Iterator[tuple[Array, dict[str, Any]]]:
        """Read a text from an empty cache.

        Args:
            tokens: [length]; a last step may be shorter.

        Yields:
            For each step the logits [step, vocabulary] and the cache behind it, which stays on the session's device.
        """
        cache = self._empty_cache()
        for start in range(0, len(tokens), step):
            outputs = self.session(self.ports.feed(tokens[start : start + step], cache))
            cache = self.ports.cache_of(outputs)
            yield arrays.to_numpy(outputs[self._logits])[0], cache

    def _empty_cache(self) -> dict[str, Any]:
        cache, device = self.ports.cache(0), self.session.device
        if device[0] == "cpu":
            return cache
        dtypes = {port.name: port.dtype for port in self.session.inputs}
        return {name: arrays.unwritten(array.shape, dtypes[name], device) for name, array in cache.items()}
