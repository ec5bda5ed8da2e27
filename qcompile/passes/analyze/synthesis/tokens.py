"""Token sequences that a language model makes up itself, or rows drawn from an encoder's table.

    decoder: first token uniform over the vocabulary, a few greedy ones, then x_t ~ softmax(logits(x_<t))
    encoder: rows of the embedding table, those left out that training never moved

Sampling from the model's own output gives text it finds plausible, and so the activations it was trained to have.
Source: Liu et al., "LLM-QAT", 2023 (arXiv:2305.17888), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import constant
from qcompile.compiler.inputs import ModelInput, made_up, table_rows
from qcompile.compiler.serialization import runnable
from qcompile.runtime.calibration import run_samples

Arrays = dict[str, npt.NDArray[Any]]

_GREEDY = 4
"""Tokens after the first that the model finds likeliest: they lead into text, from there on chance gives variety."""

_FAR = 6.0
"""A row of the table is unused when its length lies this many median deviations from the median."""

_POSITION, _SEGMENT = ("position",), ("token_type", "segment")


@dataclass(frozen=True)
class TokenModel:
    """What is known of a model that reads tokens.

    Attributes:
        tokens: name of the input that holds them, shape [batch, length].
        usable: token numbers to draw from.
        logits: the output that holds a score for each next token, None in an encoder.
    """

    tokens: str
    usable: npt.NDArray[np.int64]
    logits: str | None

    @classmethod
    def of(cls, model: ir.Model, inputs: Sequence[ModelInput]) -> TokenModel | None:
        """None when `model` reads no tokens."""
        rows = {
            name: count
            for name, count in table_rows(model).items()
            if not any(word in name for word in (*_POSITION, *_SEGMENT))
        }
        ranked = sorted((i for i in inputs if i.name in rows and len(i.shape or ()) == 2), key=lambda i: -rows[i.name])
        if not ranked:
            return None
        tokens = ranked[0].name
        logits = next((v.name for v in model.graph.outputs if _is_logits(v, rows[tokens])), None)
        return cls(tokens, _usable(model, tokens), logits)

    @property
    def title(self) -> str:
        return "token sequences that the model wrote" if self.logits else "sequences of random tokens"


def sequences(
    model: ir.Model, known: TokenModel, inputs: Sequence[ModelInput], lengths: Sequence[int], context: CompileContext
) -> list[Sample]:
    """One sample for each of `lengths`, of that many tokens."""
    random = np.random.default_rng(context.seed)
    drawn = [random.choice(known.usable, length).astype(np.int64) for length in lengths]
    if known.logits is None:
        context.progress.start("Drawing tokens", len(drawn))
        samples = [_sample(inputs, known, tokens, random) for tokens in drawn]
        context.progress.advance(len(samples))
    else:
        context.progress.start("The model writes its own samples", max(lengths))
        samples = _written(model, known, inputs, drawn, random, context)
    context.progress.finish()
    return samples


def _written(
    model: ir.Model,
    known: TokenModel,
    inputs: Sequence[ModelInput],
    drawn: list[npt.NDArray[np.int64]],
    random: np.random.Generator,
    context: CompileContext,
) -> list[Sample]:
    """All sequences grow by one token in each pass over them."""
    position = [str(v.name) for v in model.graph.outputs].index(str(known.logits))
    written = [tokens[:1] for tokens in drawn]
    usable = np.sort(known.usable)
    with runnable(model) as file:
        while any(len(w) < len(d) for w, d in zip(written, drawn, strict=True)):
            growing = [i for i, (w, d) in enumerate(zip(written, drawn, strict=True)) if len(w) < len(d)]
            feeds = [_sample(inputs, known, written[i], random) for i in growing]
            results = run_samples(file, feeds, context.target.providers)
            for i, outputs in zip(growing, results, strict=True):
                scores = outputs[position][0, -1, usable].astype(np.float64)
                chosen = int(scores.argmax())
                if len(written[i]) > _GREEDY:
                    odds = np.exp(scores - scores.max())
                    chosen = int(random.choice(len(odds), p=odds / odds.sum()))
                written[i] = np.append(written[i], usable[chosen])
            context.progress.advance()
    return [_sample(inputs, known, tokens, random) for tokens in written]


def _sample(
    inputs: Sequence[ModelInput], known: TokenModel, tokens: npt.NDArray[np.int64], random: np.random.Generator
) -> Sample:
    """The inputs of one sequence: nothing remembered, no padding, positions from 0."""
    length = len(tokens)
    given = next(i for i in inputs if i.name == known.tokens)
    symbol = (given.shape or ())[1]
    sizes = {symbol: length} if isinstance(symbol, str) else {}
    made: Arrays = made_up([_without_past(i, length, symbol) for i in inputs], random, {}, sizes)
    for i in inputs:
        if i.name == known.tokens:
            made[i.name] = tokens[None].astype(i.dtype)
        elif i.name in made and any(word in i.name for word in _POSITION):
            made[i.name] = np.broadcast_to(np.arange(made[i.name].shape[-1]), made[i.name].shape).astype(i.dtype)
        elif i.name in made and any(word in i.name for word in _SEGMENT):
            made[i.name] = np.zeros_like(made[i.name])
    return made


def _without_past(given: ModelInput, length: int, symbol: int | str) -> ModelInput:
    """Free dimensions: a memory of past tokens is empty, another length is that of the sequence."""
    past = len(given.shape or ()) > 2 and given.dtype.kind == "f"
    shape = [
        d if isinstance(d, int) or axis == 0 or d == symbol else 0 if past else length
        for axis, d in enumerate(given.shape or ())
    ]
    return ModelInput(given.name, given.dtype, tuple(shape), given.required)


def _is_logits(value: ir.Value, vocabulary: int) -> bool:
    return value.shape is not None and len(value.shape) == 3 and value.shape[2] == vocabulary


def _usable(model: ir.Model, tokens: str) -> npt.NDArray[np.int64]:
    """Rows of the embedding table whose length is like that of the others: padding is zero, unused rows stand apart."""
    value = next(v for v in model.graph.inputs if v.name == tokens)
    gather = next(n for n, i in value.uses() if n.op_type == "Gather" and i == 1)
    table = constant(gather.inputs[0])
    assert table is not None
    norms = np.linalg.norm(table.astype(np.float32), axis=1)
    middle = np.median(norms)
    spread = np.median(np.abs(norms - middle))
    usable = np.flatnonzero((np.abs(norms - middle) <= _FAR * spread) & (norms > 0))
    return usable if usable.size else np.arange(len(norms))
