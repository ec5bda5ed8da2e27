"""How good a language model is on a text, and how close it stays to the float one.

Perplexity is exp of the mean surprise -log p(t) over the tokens t that are judged. The text is cut into windows; each
is read from an empty cache and its first token is not judged, since nothing comes before it. Without a stride the
windows lie side by side. With one they advance by that many tokens, and only tokens that no window before has judged
count: so each is foreseen from at least window - stride tokens, which costs window / stride times the work and gives a
lower, truer figure. What does not fill a window at the end is left out. Figures of different windows or strides cannot
be compared.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.compiler.context import Progress, SilentProgress
from qcompile.errors import DataError, ModelError, UsageError
from qcompile.frontends.text import Text, Tokens
from qcompile.runtime.language_model import LanguageModel
from qcompile.runtime.likelihood import divergences, surprises
from qcompile.runtime.session import Session

Array = np.ndarray[Any, Any]

_WINDOW = 512
_CHARACTERS = 16
"""That many characters hold a token, in any language: the rest of a long text need not be tokenized."""


@dataclass(frozen=True)
class Evaluation:
    """What a text says about a model.

    Attributes:
        perplexity: exp of the mean surprise, 1 at best, the size of the vocabulary for a model that knows nothing.
        reference_perplexity: the float model's.
        agreement: share of the judged tokens before which both models think the same token likeliest.
        divergence: KL of the model's next-token distribution from the float model's, in nats, on average.
        tokens: how many were judged.
        windows, window, stride, step: how the text was read; step: tokens a run.
        tokens_per_second: read, all runs together.
        provider: what it ran on.
    """

    perplexity: float
    reference_perplexity: float | None
    agreement: float | None
    divergence: float | None
    tokens: int
    windows: int
    window: int
    stride: int
    step: int
    tokens_per_second: float
    provider: str


def evaluate(
    model: str | Path,
    text: str | Path | Text,
    *,
    reference: str | Path | None = None,
    stride: int | None = None,
    step: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a language model on a text.

    Args:
        model: any decoder, float or compiled, with a cache by the usual names (past_key_values) or without one.
        text: a .txt or .jsonl file, a folder of them, or a qcompile.Text with its tokenizer and windows;
            a window has 512 tokens where nothing else is said, and all of the text is read.
        reference: the float model, to compare what both foresee.
        stride: how far a window lies from the one before; left out, side by side.
        step: tokens a run reads, the others coming from the cache; left out, the whole window, or an eighth of it
            where the cache is quantized.

    Raises:
        QCompileError: what is wrong, where, and what to do.
    """
    given, bar = text if isinstance(text, Text) else Text(text), progress or SilentProgress()
    judged = _Reader.open(Path(model), given, step)
    compared = _Reader.open(Path(reference), given, step) if reference is not None else None
    window = judged.window
    apart = window if stride is None else stride
    if compared and compared.window != window:
        raise UsageError(
            f"one model reads windows of {window} tokens, the other of {compared.window}", where=str(model)
        )
    most = given.windows and (given.windows + 1) * window * _CHARACTERS
    tokens = Tokens.of(given, [Path(model), Path(reference or model)], most)
    windows = list(_windows(tokens, given, window, apart))
    if judged.model.vocabulary is not None:
        tokens.check_vocabulary(judged.model.vocabulary, str(model))
    scores = _Scores()
    bar.start("Evaluating", len(windows))
    try:
        for ids, first in windows:
            scores.add(ids, first, judged.logits(ids), compared.logits(ids) if compared else None)
            bar.advance()
    finally:
        bar.finish()
    return Evaluation(
        perplexity=_perplexity(scores.surprise),
        reference_perplexity=_perplexity(scores.expected) if compared else None,
        agreement=_mean(scores.agreement) if compared else None,
        divergence=_mean(scores.divergence) if compared else None,
        tokens=scores.tokens,
        windows=len(windows),
        window=window,
        stride=apart,
        step=judged.step,
        tokens_per_second=judged.tokens / judged.seconds,
        provider=judged.model.session.provider,
    )


@dataclass
class _Reader:
    """A model that reads windows, and the time it took."""

    model: LanguageModel
    window: int
    step: int
    tokens: int = 0
    seconds: float = 0.0

    @staticmethod
    def open(path: Path, text: Text, step: int | None) -> _Reader:
        model = LanguageModel(Session(path, spin=False))
        fixed = None if model.ports.caches else model.ports.length
        window = text.window or fixed or _WINDOW
        return _Reader(model, window, model.step_of(window, step))

    def logits(self, ids: Array) -> Array:
        """[length, vocabulary]"""
        start = time.perf_counter()
        steps = [logits for logits, _ in self.model.read(ids, self.step)]
        self.seconds += time.perf_counter() - start
        self.tokens += len(ids)
        found = np.concatenate(steps)
        if np.isnan(found).any():
            raise ModelError("the model's logits are not numbers (NaN)", where=str(self.model.session.path))
        if len(found) != len(ids):
            raise DataError(
                f"the model gives logits for {len(found)} of {len(ids)} tokens",
                where=str(self.model.session.path),
                hint="it foresees only what follows a run: --step 1 makes a run of every token",
            )
        return found


@dataclass
class _Scores:
    """Sums in the order of the text."""

    tokens: int = 0
    surprise: list[Array] = field(default_factory=list)
    expected: list[Array] = field(default_factory=list)
    divergence: list[Array] = field(default_factory=list)
    agreement: list[Array] = field(default_factory=list)

    def add(self, ids: Array, first: int, logits: Array, reference: Array | None) -> None:
        """Judge the tokens from position `first` on, each by the logits of the one before."""
        came, given = ids[first:], logits[first - 1 : -1]
        self.tokens += len(came)
        self.surprise.append(surprises(given, came))
        if reference is not None:
            wanted = reference[first - 1 : -1]
            self.expected.append(surprises(wanted, came))
            self.divergence.append(divergences(given, wanted))
            self.agreement.append(given.argmax(1) == wanted.argmax(1))


def _windows(tokens: Tokens, text: Text, window: int, stride: int) -> Iterator[tuple[Array, int]]:
    """Windows with the position of their first token that is judged."""
    before = len(tokens.before)
    inner = window - before
    tokens.check_window(text, window)
    if not 0 < stride <= window:
        raise UsageError(f"a stride of {stride} tokens leaves some out", hint=f"give 1 to {window}")
    step = min(stride, inner)
    starts = range(0, len(tokens.ids) - inner + 1, step)[: text.windows]
    for number, start in enumerate(starts):
        ids = np.concatenate([tokens.before, tokens.ids[start : start + inner]])
        yield ids, max(before, 1) if number == 0 or step == inner else window - step


def _perplexity(surprises: list[Array]) -> float:
    mean = _mean(surprises)
    return math.exp(mean) if mean < math.log(sys.float_info.max) else math.inf


def _mean(parts: list[Array]) -> float:
    return float(np.concatenate(parts).mean())
