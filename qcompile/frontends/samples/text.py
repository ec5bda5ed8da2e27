"""Windows of a text as samples of a language model.

Windows lie evenly over the text. Where the model has a cache, every other window has its first half in it already, as
in generation; the float model fills it, once for each window, and what it wrote waits on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.compiler.inputs import ModelInput
from qcompile.errors import UsageError
from qcompile.frontends.text import Text, Tokens
from qcompile.runtime.arrays import to_numpy
from qcompile.runtime.language_model import LanguageModel
from qcompile.runtime.ports import Port
from qcompile.runtime.session import Session
from qcompile.runtime.token_ports import TOKENS, TokenPorts

Array = np.ndarray[Any, Any]

_WINDOW, _WINDOWS = 256, 64
_CHARACTERS = 4_000_000
"""Of a longer text the beginning is used: tokenizing more would take longer than calibrating."""


class TextSamples:
    """One sample a window.

    Args:
        inputs: of the float model.
        outputs: names of its outputs.
        rows: how many rows the table has that an input indexes.

    Raises:
        QCompileError: the text, the tokenizer or the model is not what it should be.
    """

    synthetic = False

    def __init__(
        self, text: Text, model: Path, inputs: Sequence[ModelInput], outputs: Sequence[str], rows: Mapping[str, int]
    ) -> None:
        ports = [Port(i.name, str(i.dtype), _sizes(i)) for i in inputs if i.required]
        self._model, self._ports = model, TokenPorts.of(ports, outputs, str(model))
        fixed = None if self._ports.caches else self._ports.length
        window = text.window or fixed or _WINDOW
        if fixed not in (None, window):
            raise UsageError(
                f"the model takes {fixed} tokens, not {window}", where=str(model), hint="leave out --window"
            )
        tokens = Tokens.of(text, [model], _CHARACTERS)
        tokens.check_window(text, window)
        tokens.check_vocabulary(rows.get(TOKENS, 1 << 62), str(text.tokenizer or text.path))
        inner = window - len(tokens.before) - len(tokens.behind)
        there = len(tokens.ids) // inner
        count = min(text.windows or _WINDOWS, there)
        self._windows = tokens.cut(window, [i * there // count * inner for i in range(count)])
        self.description = f"{count} windows of {window} tokens of {Path(text.path).name}"

    def __iter__(self) -> Iterator[tuple[str, object]]:
        for number, window in enumerate(self._windows):
            done = self._in_cache(number, len(window))
            cache = self._cache(number, window[:done]) if done else {}
            yield f"window {number + 1} of the text", self._ports.feed(window[done:], cache)

    def _in_cache(self, number: int, window: int) -> int:
        if not self._ports.caches:
            return 0
        if self._ports.length:
            return max(window - self._ports.length, 0)
        return window // 2 if number % 2 else 0

    def _cache(self, number: int, tokens: Array) -> dict[str, Array]:
        file = Path(self._folder.name) / f"{number}.npz"
        if not file.is_file():
            for _, cache in self._reader.read(tokens, self._ports.length or len(tokens)):
                last = cache
            np.savez(file, allow_pickle=False, **{name: to_numpy(array) for name, array in last.items()})
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}

    @cached_property
    def _reader(self) -> LanguageModel:
        return LanguageModel(Session(self._model))

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="qcompile-")


def _sizes(given: ModelInput) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) else None for d in given.shape or ())
