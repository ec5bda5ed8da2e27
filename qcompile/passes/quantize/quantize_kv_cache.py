"""Keys and values of earlier tokens are kept as codes: a cache of a quarter or an eighth of the memory.

    s[h, d] = r max |x[:, h, :, d]| / qmax over the calibration samples,   q = round(x / s), saturated

x: new keys or values, float32 [batch, heads, tokens, columns]. The scales are constants, one for each head and
column: keys have columns that are large for every token (KIVI keeps them by column for that reason), an attention
that runs on codes takes its scales in this form, and a cache stays one tensor, handed from run to run as before.
r = 1.25 leaves 8-bit formats room for what no sample showed: on other text SmolLM2's keys reach 1.8 times their
calibrated range, and r = 1 costs 3 dB, r = 1.5 one. With 4 bits every step counts, and r = 1.
Source: Liu et al., "KIVI", 2024 (arXiv:2402.02750), for keys by column; Hooper et al., "KVQuant", 2024, for
calibrated scales.

Errors: TargetError where the target keeps no cache in this format, ModelError where the model has no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FORMATS
from qcompile.compiler.graph import name_of
from qcompile.compiler.kv_caches import COLUMNS, HEADS, KeyValueCache, find_caches
from qcompile.compiler.params import params_from_range
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.plan import QuantizedCache
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Channels
from qcompile.errors import ModelError, TargetError

_STATISTIC = Channels(HEADS, COLUMNS)
_ROOM = 1.25


class QuantizeKvCache(Pass):
    """Choose the scales of a decoder's key-value cache."""

    name: ClassVar[str] = "quantize-kv-cache"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.STATISTICS})

    format: Literal["int8", "int4", "fp8-e4m3"] = Field(
        default="int8", description="what keys and values are kept in; the target's table says what it takes"
    )

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        return [StatisticRequest(name_of(cache.observed), _STATISTIC) for cache in find_caches(model)]

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        caches = find_caches(model)
        if not caches:
            raise ModelError(
                "the model has no key-value cache: no input that new keys or values are appended to and that is "
                "returned as an output",
                hint="export the decoder with its cache (past_key_values), or leave out quantize-kv-cache",
            )
        spec = QuantSpec(FORMATS[self.format], symmetric=True)
        for cache in caches:
            self._demand(cache, context)
            self._plan(cache, spec, context)
        planned = [cache for cache in caches if name_of(cache.past) in context.plan.caches]
        before = sum(4 * cache.heads * cache.columns for cache in planned)
        context.notice(
            f"key-value cache: {len(planned)} of {len(caches)} tensors are kept in {self.format}, "
            f"{before * spec.format.bits // 32} bytes for each token instead of {before}"
        )
        return False

    def _demand(self, cache: KeyValueCache, context: CompileContext) -> None:
        target = context.target
        offered = [c for c in target.caches if c.op_type == cache.node.op_type]
        if not any(f.name == self.format for c in offered for f in c.formats):
            there = ", ".join(f.name for c in offered for f in c.formats) or "none"
            raise TargetError(
                f"it keeps no key-value cache in {self.format} that {cache.node.op_type} appends to",
                where=f"target '{target.name}'",
                hint=f"formats that it takes: {there}",
            )

    def _plan(self, cache: KeyValueCache, spec: QuantSpec, context: CompileContext) -> None:
        past = name_of(cache.past)
        seen = context.statistics.channels_of(name_of(cache.observed), HEADS, COLUMNS)
        obstacle = cache.obstacle or ("no sample showed what it holds" if seen is None else "")
        if obstacle or seen is None:
            context.notice(f"the cache '{past}' stays float: {obstacle}")
            return
        room = _ROOM if spec.format.bits == 8 else 1.0
        low, high = (room * bound.reshape(cache.heads, cache.columns) for bound in (seen.low, seen.high))
        context.plan.caches[past] = QuantizedCache(past, name_of(cache.present), params_from_range(spec, low, high))
