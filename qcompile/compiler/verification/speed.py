"""Never slower: the float model against the compiled one on the target's provider."""

from __future__ import annotations

from pathlib import Path

from qcompile.compiler.context import Sample
from qcompile.compiler.report import Proof, Speed
from qcompile.compiler.verification.optimized import original_name
from qcompile.runtime.benchmark import Timing, interleaved, node_times, ratio

_NOISE = 0.97
"""Ratios above this are not told apart from 1 on a machine that does other things too."""

_CERTAIN = 0.8
"""A model is slower when it is so in this share of the turns: between equal models a median alone errs too often."""

_NAMED = 8  # slowest nodes kept for the report


def prove_speed(
    float_model: Path, artifact: Path, sample: Sample, provider: str, seconds: float
) -> tuple[Speed, Proof]:
    """Time both models in turns for about `seconds`.

    Raises:
        TargetError: the provider does not load on this machine.
    """
    timings = interleaved({"float": float_model, "compiled": artifact}, sample, provider, seconds)
    faster, spread = ratio(timings["float"], timings["compiled"])
    nodes = node_times(artifact, sample, provider)
    speed = Speed(
        provider=provider,
        float_ms=timings["float"].median,
        compiled_ms=timings["compiled"].median,
        spread=spread,
        slowest=[(f"{original_name(name)} ({op_type})", ms) for name, op_type, ms in nodes[:_NAMED]],
    )
    detail = f"{faster:.2f}x of float on {provider}: {speed.float_ms:.3g} ms -> {speed.compiled_ms:.3g} ms"
    if faster >= _NOISE:
        return speed, Proof(name="speed", passed=True, detail=detail)
    if not slower(timings["compiled"], timings["float"]):
        lost, turns = _lost(timings["compiled"], timings["float"])
        detail += f"; not told apart, slower in {lost} of {turns} turns"
        return speed, Proof(name="speed", passed=True, detail=detail)
    named = ", ".join(f"{name} {ms:.3g} ms" for name, ms in speed.slowest[:4])
    return speed, Proof(name="speed", passed=False, detail=f"SLOWER, {detail}; the time goes to {named}")


def slower(model: Timing, other: Timing) -> bool:
    """Whether `model` is slower than `other` by more than turns of equal models may differ."""
    lost, turns = _lost(model, other)
    return ratio(other, model)[0] < _NOISE and lost >= _CERTAIN * turns


def _lost(model: Timing, other: Timing) -> tuple[int, int]:
    """In how many turns `model` was slower than `other`, and of how many."""
    pairs = list(zip(other.turns, model.turns, strict=True))
    return sum(mine > others for others, mine in pairs), len(pairs)
