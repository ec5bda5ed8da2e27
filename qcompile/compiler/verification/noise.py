"""Noise of a compiled model against the float one, summed over samples in constant memory.

    SQNR = 10 log10(||y||^2 / ||y - y~||^2) dB,   cosine = <y, y~> / (||y|| ||y~||)

over all elements of all samples. Equal tensors have no noise; their SQNR is given as `NOISELESS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.compiler.context import Sample
from qcompile.compiler.report import NOISELESS, OutputNoise, Proof
from qcompile.compiler.verification.room import entries_for
from qcompile.runtime.kv_cache import CacheCodes
from qcompile.runtime.providers import open_session, provider_options

Array = np.ndarray[Any, Any]
Runner = Callable[[Sample], Mapping[str, Array]]

_WRONG = 10.0
"""dB; below it more than a tenth of an output's energy is error, which no int8 model of worth shows."""


@dataclass
class Noise:
    """Running sums of one value and its approximation."""

    signal: float = 0.0
    error: float = 0.0
    product: float = 0.0
    energy: float = 0.0
    largest: float = 0.0
    finite: bool = True
    count: int = 0

    def add(self, exact: Array, approximate: Array) -> None:
        """Add one sample; both arrays have the same shape."""
        y, z = (np.asarray(a, np.float64).ravel() for a in (exact, approximate))
        self.count += 1
        usable = np.isfinite(y)  # a masked score of -inf is not a signal
        if not usable.all():
            y, z = y[usable], z[usable]
        if not np.isfinite(z).all():
            self.finite = False
            return
        d = y - z
        self.signal += _dot(y, y)
        self.error += _dot(d, d)
        self.product += _dot(y, z)
        self.energy += _dot(z, z)
        self.largest = max(self.largest, float(np.abs(d).max(initial=0.0)))

    @property
    def sqnr(self) -> float:
        if not self.finite:
            return -NOISELESS
        if self.error == 0:
            return NOISELESS
        ratio = self.signal / self.error
        return -NOISELESS if ratio == 0 else max(-NOISELESS, min(NOISELESS, 10 * math.log10(ratio)))

    @property
    def cosine(self) -> float:
        if self.error == 0 and self.finite:
            return 1.0
        norm = math.sqrt(self.signal) * math.sqrt(self.energy)
        return self.product / norm if norm else 0.0


def _dot(a: Array, b: Array) -> float:
    """A dot product on one thread: BLAS would start its threads beside those of ONNX Runtime."""
    return float(np.einsum("i,i->", a, b))


def runner(model: Path, provider: str, entries: Mapping[str, str] | None = None) -> Runner:
    """A function from a sample to the model's outputs by name; a model larger than memory stays in its files, and a
    quantized key-value cache is given and got in float.

    Args:
        entries: session options by key.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    for entry, value in {**entries_for(model), **(entries or {})}.items():
        options.add_session_config_entry(entry, value)
    session = open_session(model, options, provider, provider_options(provider, 0, None))
    inputs, outputs = {i.name for i in session.get_inputs()}, [o.name for o in session.get_outputs()]
    caches = CacheCodes.of(model)

    def run(sample: Sample) -> Mapping[str, Array]:
        values = session.run(outputs, caches.encode({k: v for k, v in sample.items() if k in inputs}))
        return caches.decode(dict(zip(outputs, values, strict=True)))

    return run


def compare_outputs(exact: Runner, approximate: Runner, samples: Iterable[Sample]) -> tuple[list[OutputNoise], Proof]:
    """Every output over all samples, and whether the compiled model still computes the same function.

    Outputs that are not floating point (class indices, masks) are compared but do not decide.
    """
    noise: dict[str, Noise] = {}
    deciding: set[str] = set()
    count, worse = 0, ""
    for sample in samples:
        count += 1
        expected, given = _tensors(exact(sample)), _tensors(approximate(sample))
        if len(expected) != len(given):
            worse = worse or f"there are {len(given)} output tensors instead of {len(expected)}"
        for (name, y), z in zip(expected.items(), given.values(), strict=False):
            if np.shape(y) != np.shape(z):
                worse = worse or f"output '{name}' has shape {np.shape(z)} instead of {np.shape(y)}"
                continue
            noise.setdefault(name, Noise()).add(y, z)
            if np.issubdtype(np.asarray(y).dtype, np.floating):
                deciding.add(name)
    found = [
        OutputNoise(name=name, sqnr=n.sqnr, cosine=n.cosine, max_error=n.largest if n.finite else float("inf"))
        for name, n in noise.items()
    ]
    return found, _judge([o for o in found if o.name in deciding], count, worse)


def _tensors(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """The numeric tensors among outputs, those of sequences too; strings and maps are not compared."""
    found: dict[str, Array] = {}
    for name, value in outputs.items():
        members = {f"{name}[{i}]": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
        found |= {n: v for n, v in members.items() if isinstance(v, np.ndarray) and v.dtype.kind not in "OUST"}
    return found


def _judge(outputs: list[OutputNoise], samples: int, worse: str) -> Proof:
    if worse:
        return Proof(name="numerics", passed=False, detail=worse)
    if not outputs:
        return Proof(name="numerics", passed=None, detail="the model has no floating-point output to compare")
    worst = min(outputs, key=lambda o: o.sqnr)
    if worst.sqnr == NOISELESS:
        return Proof(name="numerics", passed=True, detail=f"{samples} held-out samples: every output is equal")
    detail = f"{samples} held-out samples: worst output '{worst.name}' {worst.sqnr:.1f} dB, cosine {worst.cosine:.5f}"
    passed = worst.sqnr >= _WRONG
    return Proof(name="numerics", passed=passed, detail=detail + ("" if passed else f"; below {_WRONG:.0f} dB"))
