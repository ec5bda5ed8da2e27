"""Noise layer by layer: what each unit adds by itself, and what has gathered up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile.compiler.context import Progress, Sample
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.report import LayerNoise
from qcompile.compiler.verification.isolation import Index, Piece, assemble, cut_out, result_name
from qcompile.compiler.verification.noise import Noise
from qcompile.compiler.verification.reference import Reference
from qcompile.runtime.external_tensors import stored_bytes
from qcompile.runtime.kv_cache import CacheCodes
from qcompile.runtime.providers import CPU
from qcompile.runtime.taps import Probe, body_values, branches, tappable_values

Array = np.ndarray[Any, Any]

_FIRST = 64
"""Units in the first part; what their values take says how many fit into the next."""

_MOST_WEIGHTS = 256 << 20
"""Bytes of the weights of one part; there is a session with them beside that of the whole model."""

_MOST_BYTES = 300_000_000
"""Values of one sample that are held at once."""


@dataclass
class _Layer:
    """One unit under measurement: the names of its value in the float model and in the artifact, the graph it lies
    in, and the sums."""

    unit: Unit
    value: str
    tapped: str
    piece: Piece | None
    home: int
    gathered: Noise = field(default_factory=Noise)
    alone: Noise = field(default_factory=Noise)
    comparable: bool = True

    def record(self) -> LayerNoise:
        comparable = self.comparable and self.gathered.count > 0
        isolated = comparable and self.piece is not None
        return LayerNoise(
            node=self.unit.node,
            op_type=self.unit.op_type,
            value=self.value,
            sqnr=self.gathered.sqnr if comparable else None,
            cosine=self.gathered.cosine if comparable else None,
            isolated_sqnr=self.alone.sqnr if isolated else None,
            isolated_cosine=self.alone.cosine if isolated else None,
        )


def measure_layers(
    reference: Reference,
    artifact: Path,
    units: Mapping[str, Unit],
    samples: Sequence[Sample],
    progress: Progress,
    entries: Mapping[str, str] | None = None,
    provider: str = CPU,
) -> tuple[list[LayerNoise], str]:
    """Cumulative and isolated noise of every unit's output, over all samples.

    The models are run for a part of the units at a time, so memory does not grow with the depth.

    Args:
        entries: session options that the artifact needs to be executed as it is written.
        provider: where both models run.

    Returns:
        The measured layers in graph order, and in words what was not measured and why.
    """
    bench = _Bench(reference, artifact, entries, provider)
    layers, skipped = bench.measurable(units)
    progress.start("measuring the noise of each layer", len(layers) * len(samples))
    for home in dict.fromkeys(layer.home for layer in layers):
        waiting, size = [layer for layer in layers if layer.home == home], _FIRST
        while waiting and samples:
            count = bench.within(waiting[:size])
            part, waiting = waiting[:count], waiting[count:]
            weight = bench.measure(part, samples, progress) / len(part)
            size = max(_FIRST, int(_MOST_BYTES / max(weight, 1)))
    progress.finish()
    return [layer.record() for layer in layers], skipped


class _Bench:
    """Both models, taken apart."""

    def __init__(self, reference: Reference, artifact: Path, entries: Mapping[str, str] | None, provider: str) -> None:
        self.exact, self.weights = reference.model, reference.weights
        self.compiled = onnx.load(artifact, load_external_data=False)
        self.index, self.provider = Index(self.compiled), provider
        self.of_artifact = partial(Probe, folder=artifact.parent, entries=entries, provider=provider)
        self.caches = CacheCodes.of(artifact)
        self.codes = _code_parameters(self.compiled, artifact.parent)

    def measurable(self, units: Mapping[str, Unit]) -> tuple[list[_Layer], str]:
        known = tappable_values(self.exact) - set(self.weights)
        inside = body_values(self.exact) | body_values(self.compiled)
        present = tappable_values(self.compiled)
        quantized = {n.input[0]: n.output[0] for n in self.index.producers.values() if n.op_type == "QuantizeLinear"}
        layers, in_bodies, fused = [], 0, 0
        for unit in units.values():
            value = tapped = unit.output
            if unit.form in (Form.FULL, Form.PASS):
                tapped = quantized.get(unit.output, f"{unit.output}_quantized")
            elif tapped not in present:  # an operator that swallowed the activation writes its result
                value = tapped = next(iter(self.index.made_by.get(unit.lowered, ())), unit.output)
            if value in known and tapped in present:
                home = id(self.index.homes.get(tapped))
                layers.append(_Layer(unit, value, tapped, cut_out(unit, tapped, self.index, known - {value}), home))
            elif unit.output in inside:
                in_bodies += 1
            else:
                fused += 1
        reasons = []
        if in_bodies:
            reasons.append(f"{in_bodies} inside bodies of control flow")
        if fused:
            reasons.append(f"{fused} whose output the float model does not have under that name")
        return layers, ", ".join(reasons)

    def within(self, layers: list[_Layer]) -> int:
        """How many of `layers`, from the first on, have weights that can be held at once; at least one."""
        held, known = 0, set[str]()
        for i, layer in enumerate(layers):
            new = layer.piece.initializers - known if layer.piece is not None else set()
            held += sum(stored_bytes(self.index.initializers[name]) for name in new)
            known |= new
            if held > _MOST_WEIGHTS:
                return max(i, 1)
        return len(layers)

    def measure(self, layers: list[_Layer], samples: Sequence[Sample], progress: Progress) -> int:
        """Add all samples to `layers`, which lie in one graph; returns the bytes that one sample took."""
        inputs = {i.name for i in self.exact.graph.input}
        alone = [layer for layer in layers if layer.piece is not None]
        pieces = [layer.piece for layer in alone if layer.piece is not None]
        reads = {name for piece in pieces for name in piece.reads} - inputs
        float_probe = Probe(
            self.exact,
            [*(layer.value for layer in layers), *sorted(reads)],
            weights=self.weights,
            provider=self.provider,
        )
        compiled_probe = self.of_artifact(self.compiled, [layer.tapped for layer in layers])
        pieces_probe: Probe | None = None
        weight = 0
        for sample in samples:
            floats = {**sample, **float_probe(sample)}
            gathered = compiled_probe(self.caches.encode(sample))
            progress.advance(len(layers))
            if all(array.shape == (0,) for array in gathered.values()):
                continue  # a branch that this sample does not take
            given = self.index.as_read(floats)
            if pieces and pieces_probe is None:
                model = assemble(pieces, self.index, self.compiled, given)
                pieces_probe = self.of_artifact(model, [o.name for o in model.graph.output])
            isolated = pieces_probe(given) if pieces_probe is not None else {}
            for layer in layers:
                _add(layer, layer.gathered, floats, gathered[layer.tapped], self.codes)
            for i, layer in enumerate(alone):
                assert layer.piece is not None
                _add(layer, layer.alone, floats, isolated[result_name(i, layer.piece)], self.codes)
            weight = max(weight, sum(a.nbytes for part in (floats, gathered, isolated) for a in part.values()))
        return weight


def _add(
    layer: _Layer, noise: Noise, floats: Mapping[str, Array], found: Array, codes: Mapping[str, tuple[Array, Array]]
) -> None:
    expected = floats[layer.value]
    if layer.tapped in codes:
        scale, zero = codes[layer.tapped]
        found = (found.astype(np.float32) - zero) * scale
    if expected.shape == found.shape:
        noise.add(expected, found)
    else:
        layer.comparable = False


def _code_parameters(artifact: onnx.ModelProto, folder: Path) -> dict[str, tuple[Array, Array]]:
    """Scale and zero point of every activation that exists as codes, by the name of the codes."""
    constants = {i.name: i for graph in branches(artifact) for i in graph.initializer}
    found: dict[str, tuple[Array, Array]] = {}
    for node in (node for graph in branches(artifact) for node in graph.node):
        if node.op_type != "QuantizeLinear" or node.input[1] not in constants:
            continue
        scale = onnx.numpy_helper.to_array(constants[node.input[1]], str(folder))
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        shift = onnx.numpy_helper.to_array(zero, str(folder)).astype(np.float32) if zero is not None else np.float32(0)
        found[node.output[0]] = scale, np.asarray(shift)
    return found
