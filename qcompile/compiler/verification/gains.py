"""What leaving a unit in float would buy: the compiled model's output noise with and without that one unit.

    gain(u) = S(artifact with u in float) - S(artifact)
    S = -10 log10(mean over outputs of ||y - y~||^2 / ||y||^2) dB

over the floating-point outputs, on a few held-out samples. All other units stay as they are, so the gain of
several units together is measured and not added up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile.compiler.context import Progress, Sample
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.report import NOISELESS, FloatGain, FloatGains, LayerNoise
from qcompile.compiler.verification.noise import Noise
from qcompile.compiler.verification.reference import Reference
from qcompile.compiler.verification.switches import Switcher
from qcompile.runtime.kv_cache import CacheCodes
from qcompile.runtime.providers import CPU
from qcompile.runtime.taps import Probe, tappable_values

Array = np.ndarray[Any, Any]

SAMPLES = 4
_SECONDS = 10.0
"""For measuring, the opening of the session aside; after that only the fewest units are measured."""

_LEAST_UNITS, _MOST_UNITS = 8, 64

_WORTH = 0.5
"""dB: a unit that buys less is not proposed."""

_PROPOSED = 5


def measure_gains(
    reference: Reference,
    artifact: Path,
    units: Mapping[str, Unit],
    layers: Sequence[LayerNoise],
    samples: Sequence[Sample],
    expected: Sequence[Mapping[str, Array]],
    plan: QuantPlan | None,
    progress: Progress,
    entries: Mapping[str, str] | None = None,
    provider: str = CPU,
) -> FloatGains | None:
    """Measure the units that are noisiest alone, the noisiest first, until the time is up.

    Args:
        reference: the float model, whose operators take the place of the artifact's.
        layers: the noise of the units, measured before.
        expected: outputs of the float model, for the first samples.
        plan: for the time that a unit in float would cost, where the target's table knows it.
        entries: session options that the artifact needs to be executed as it is written.
        provider: where it runs.

    Returns:
        The gains, the largest first; None when there is nothing to measure.
    """
    suspects = _suspects(units, layers)
    switcher = _with_switches(reference, artifact, units, suspects)
    if not switcher.switches or not expected:
        return None
    bench = _Bench(switcher, artifact, samples, expected, entries, provider)
    if not bench.outputs:
        return None
    progress.start("measuring what float layers would buy", len(switcher.switches))
    start, base = time.monotonic(), bench.sqnr(())
    if base in (NOISELESS, -NOISELESS):
        return None
    costs = plan.float_ms if plan is not None else {}
    gains: list[FloatGain] = []
    for node in switcher.switches:
        if time.monotonic() - start > _SECONDS and len(gains) >= _LEAST_UNITS:
            break
        unit = units[node]
        gain = bench.sqnr([node]) - base
        cost = costs.get((node, unit.form))
        gains.append(FloatGain(node=node, op_type=unit.op_type, form=unit.form, gain=gain, float_ms=cost))
        progress.advance()
    gains.sort(key=lambda g: -g.gain)
    proposed = [g.node for g in gains[:_PROPOSED] if g.gain >= _WORTH]
    return FloatGains(
        sqnr=base,
        units=sum(unit.form is not Form.PASS for unit in units.values()),
        samples=len(expected),
        gains=gains,
        proposed=proposed,
        together=bench.sqnr(proposed) - base if proposed else 0.0,
    )


def _suspects(units: Mapping[str, Unit], layers: Sequence[LayerNoise]) -> list[Unit]:
    """Units that compute, the noisiest alone first; those whose noise was not measured come last."""
    alone = {layer.node: layer.isolated_sqnr for layer in layers if layer.isolated_sqnr is not None}
    computing = [u for u in units.values() if u.form is not Form.PASS and alone.get(u.node) != NOISELESS]
    return sorted(computing, key=lambda unit: alone.get(unit.node, math.inf))


def _with_switches(
    reference: Reference, artifact: Path, units: Mapping[str, Unit], suspects: Sequence[Unit]
) -> Switcher:
    switcher = Switcher(reference, onnx.load(artifact, load_external_data=False), units)
    for unit in suspects:
        piece = switcher.piece(unit)
        if piece is not None:
            switcher.add(unit, piece)
        if len(switcher.switches) == _MOST_UNITS:
            break
    return switcher


class _Bench:
    """The switchable artifact, and the outputs of the float model to hold it against."""

    def __init__(
        self,
        switcher: Switcher,
        artifact: Path,
        samples: Sequence[Sample],
        expected: Sequence[Mapping[str, Array]],
        entries: Mapping[str, str] | None,
        provider: str,
    ) -> None:
        self.switches, self.samples, self.expected = switcher.switches, samples, expected
        computed = tappable_values(switcher.model)
        floats = (name for name, y in self.expected[0].items() if isinstance(y, np.ndarray) and y.dtype.kind == "f")
        self.outputs = [name for name in floats if name in computed]
        self.probe = Probe(switcher.model, self.outputs, artifact.parent, entries, switcher.weights, provider)
        self.caches = CacheCodes.of(artifact)

    def sqnr(self, in_float: Collection[str]) -> float:
        """Signal-to-noise ratio of the outputs with these units in float, in dB."""
        flags = {switch: np.array(node in in_float) for node, switch in self.switches.items()}
        noise = {name: Noise() for name in self.outputs}
        for sample, expected in zip(self.samples, self.expected, strict=False):
            outputs = self.caches.decode(self.probe(self.caches.encode({**sample, **flags})))
            for name, found in outputs.items():
                if found.shape != expected[name].shape:
                    return -NOISELESS
                noise[name].add(expected[name], found)
        if not all(n.finite for n in noise.values()):
            return -NOISELESS
        ratios = [n.error / n.signal for n in noise.values() if n.signal]
        mean = sum(ratios) / len(ratios) if ratios else 0.0
        return min(-10 * math.log10(mean), NOISELESS) if mean else NOISELESS
