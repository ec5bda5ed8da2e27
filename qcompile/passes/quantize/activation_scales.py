"""Which activations an 8-bit grid can serve, and with which scale.

    served:  mean |x| >= resolution * s      s, z from the whole range, and again from the clip that calibration chose

A grid over a range that a few giants span rounds everything else to zero; the mean magnitude in steps
tells. Cutting such giants off is no way out: in a transformer later layers depend on them (Sun et al., 2024,
"Massive activations"). Constants that stand in an activation's place are judged by their own values.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant, is_float32, name_of
from qcompile.compiler.params import QuantParams, params_from_range
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Clip, StatisticsTable
from qcompile.compiler.units import Candidate


class ActivationScales:
    """The scales of one graph's activations.

    Attributes:
        params: parameters of every tensor that was judged and may exist as codes, by name.
        unresolved: what speaks against the others, as the end of a sentence: name -> reason.
    """

    def __init__(self, statistics: StatisticsTable, spec: QuantSpec, resolution: float) -> None:
        self.statistics, self.spec, self.resolution = statistics, spec, resolution
        self.params: dict[str, QuantParams] = {}
        self.unresolved: dict[str, str] = {}
        self._moved_scale: dict[str, float] = {}

    def elements(self, value: ir.Value) -> float:
        """Elements of an activation in one sample, on average; 0 when it was not observed."""
        seen = self.statistics.range_of(name_of(value))
        return seen.elements if seen else 0.0

    def unreadable(self, candidate: Candidate) -> str:
        """Why an input of `candidate` cannot be codes, empty when all can."""
        for position in candidate.activations:
            value = candidate.node.inputs[position]
            if value is not None and not self.serves(value):
                return f"its input '{value.name}' {self.unresolved[name_of(value)]}"
        return ""

    def unwritable(self, value: ir.Value) -> str:
        """Why the output `value` cannot be codes, empty when it can."""
        return "" if self.serves(value) else f"its output '{value.name}' {self.unresolved[name_of(value)]}"

    def unmovable(self, candidate: Candidate) -> str:
        """Why codes cannot pass through an operator that keeps their scale: it must resolve the part it moves."""
        source, result = name_of(candidate.reads()[0]), name_of(candidate.output)
        self.serves(candidate.output)
        seen = self.statistics.range_of(result)
        if seen is None:
            return f"its output '{result}' {self.unresolved[result]}"
        self._moved_scale[result] = self._moved_scale.get(source, float(self.params[source].scale))
        steps = seen.mean_magnitude / (self._moved_scale[result] * self.spec.format.step)
        if 0 < steps < self.resolution:
            return f"its output's mean magnitude is {steps:.2f} steps at the scale of '{source}'"
        return ""

    def serves(self, value: ir.Value) -> bool:
        """Whether `value` may exist as codes; judged once."""
        name = name_of(value)
        if name not in self.params and name not in self.unresolved:
            if is_constant(value):
                self._judge_constant(name, value)
            elif (seen := self.statistics.range_of(name)) is None:
                self.unresolved[name] = "was observed on no sample (a branch never taken, or the body of a Scan)"
            else:
                self._judge(name, seen.low, seen.high, seen.mean_magnitude, self.statistics.clip_of(name, self.spec))
        return name in self.params

    def _judge_constant(self, name: str, value: ir.Value) -> None:
        array = constant(value)
        if array is None or array.size == 0 or not is_float32(value):
            self.unresolved[name] = "is not a float32 tensor"
        elif not np.isfinite(array).all():
            self.unresolved[name] = "holds NaN or infinity"
        else:
            self._judge(name, float(array.min()), float(array.max()), float(np.abs(array).mean()))

    def _judge(self, name: str, low: float, high: float, mean: float, clip: Clip | None = None) -> None:
        if not np.isfinite([low, high]).all():
            self.unresolved[name] = "holds infinity"
            return
        if not np.isfinite(mean):
            self.unresolved[name] = f"has magnitudes up to {max(-low, high):.4g}, whose sum is beyond float32"
            return
        params = self._resolved(name, low, high, mean)
        if params is not None and clip is not None:
            params = self._resolved(name, clip.low, clip.high, mean)
        if params is not None:
            self.params[name] = params

    def _resolved(self, name: str, low: float, high: float, mean: float) -> QuantParams | None:
        """Parameters over a range whose grid resolves the tensor; otherwise None, with the reason in `unresolved`."""
        params = params_from_range(self.spec, low, high)
        steps = mean / (float(params.scale) * self.spec.format.step)
        if steps >= self.resolution or mean <= 0:
            return params
        self.unresolved[name] = (
            f"has range [{low:.4g}, {high:.4g}] but mean magnitude {mean:.4g}: "
            f"{steps:.2f} steps of {self.spec.format.name}"
        )
        return None
