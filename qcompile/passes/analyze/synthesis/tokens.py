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
from qcompile.runtime.calibration import open_runner

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
        samples = [_sample(inputs, known, tokens, random, {}) for tokens in drawn]
        context.progress.advance(len(samples))
    else:
        context.progress.start("The model writes its own samples", sum(lengths) - len(lengths))
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
    """Each sequence begins with the first token drawn for it, and grows by one token in each run."""
    outputs = [str(v.name) for v in model.graph.outputs]
    position, memory, usable = outputs.index(str(known.logits)), _memory(model, inputs, known), np.sort(known.usable)
    samples: list[Sample] = []
    with runnable(model) as file:
        run = open_runner(file, context.float_providers)
        for length in map(len, drawn):
            tokens = drawn[len(samples)][:1]
            past: Arrays = {}
            while len(tokens) < length:
                given = run(_sample(inputs, known, tokens, random, past))
                past = {name: given[at] for name, at in memory.items()}
                scores = given[position][0, -1, usable].astype(np.float64)
                chosen = int(scores.argmax())
                if len(tokens) > _GREEDY:
                    odds = np.exp(scores - scores.max())
                    chosen = int(random.choice(len(odds), p=odds / odds.sum()))
                tokens = np.append(tokens, usable[chosen])
                context.progress.advance()
            samples.append(_sample(inputs, known, tokens, random, {}))
    return samples


def _memory(model: ir.Model, inputs: Sequence[ModelInput], known: TokenModel) -> dict[str, int]:
    """Inputs that hold the past, with the position of the output that holds it one step later: in the same order,
    as exporters write them. Empty where they do not pair up; then every step reads the whole sequence again."""
    pasts = [i.name for i in inputs if _is_past(i)]
    presents = [at for at, v in enumerate(model.graph.outputs) if v.name != known.logits]
    ranks = {v.name: len(v.shape or ()) for v in [*model.graph.inputs, *model.graph.outputs]}
    pairs = list(zip(pasts, presents, strict=False))
    fit = len(pasts) == len(presents) and all(ranks[p] == ranks[model.graph.outputs[at].name] for p, at in pairs)
    return dict(pairs) if fit else {}


def _is_past(given: ModelInput) -> bool:
    return len(given.shape or ()) > 2 and given.dtype.kind == "f"


def _sample(
    inputs: Sequence[ModelInput],
    known: TokenModel,
    tokens: npt.NDArray[np.int64],
    random: np.random.Generator,
    past: Arrays,
) -> Sample:
    """The inputs of one sequence: no padding, positions from 0. With a `past` only the last token is read."""
    length, read = len(tokens), tokens[-1:] if past else tokens
    given = next(i for i in inputs if i.name == known.tokens)
    symbol = (given.shape or ())[1]
    sizes = {symbol: len(read)} if isinstance(symbol, str) else {}
    made: Arrays = made_up([_sized(i, length, symbol) for i in inputs if i.name not in past], random, {}, sizes)
    for i in inputs:
        if i.name == known.tokens:
            made[i.name] = read[None].astype(i.dtype)
        elif i.name in made and any(word in i.name for word in _POSITION):
            count = made[i.name].shape[-1]
            made[i.name] = np.broadcast_to(np.arange(length)[-count:], made[i.name].shape).astype(i.dtype)
        elif i.name in made and any(word in i.name for word in _SEGMENT):
            made[i.name] = np.zeros_like(made[i.name])
    return made | past


def _sized(given: ModelInput, length: int, symbol: int | str) -> ModelInput:
    """Free dimensions: a memory of past tokens is empty, another length is that of the whole sequence."""
    shape = [
        d if isinstance(d, int) or axis == 0 or d == symbol else 0 if _is_past(given) else length
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
    rows = np.moveaxis(table.astype(np.float32), gather.attributes.get_int("axis", 0), 0)
    norms = np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    middle = np.median(norms)
    spread = np.median(np.abs(norms - middle))
    usable = np.flatnonzero((np.abs(norms - middle) <= _FAR * spread) & (norms > 0))
    return usable if usable.size else np.arange(len(norms))
