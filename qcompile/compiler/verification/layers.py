"""Noise layer by layer: what each unit adds by itself, and what has gathered up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile.compiler.context import Progress, Sample
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.report import LayerNoise
from qcompile.compiler.verification.isolation import Piece, assemble, cut_out, result_name
from qcompile.compiler.verification.noise import Noise
from qcompile.runtime.taps import Probe, body_values, chunks, outer_values

Array = np.ndarray[Any, Any]


@dataclass
class _Layer:
    """One unit under measurement: its value's name in the artifact and the sums."""

    unit: Unit
    tapped: str
    piece: Piece | None
    gathered: Noise = field(default_factory=Noise)
    alone: Noise = field(default_factory=Noise)
    comparable: bool = True

    def record(self) -> LayerNoise:
        isolated = self.comparable and self.piece is not None
        return LayerNoise(
            node=self.unit.node,
            op_type=self.unit.op_type,
            value=self.unit.output,
            sqnr=self.gathered.sqnr if self.comparable else None,
            cosine=self.gathered.cosine if self.comparable else None,
            isolated_sqnr=self.alone.sqnr if isolated else None,
            isolated_cosine=self.alone.cosine if isolated else None,
        )


def measure_layers(
    float_model: Path,
    artifact: Path,
    units: Mapping[str, Unit],
    samples: Sequence[Sample],
    progress: Progress,
    entries: Mapping[str, str] | None = None,
) -> tuple[list[LayerNoise], str]:
    """Cumulative and isolated noise of every unit's output, over all samples.

    Both models are run for 64 units at a time, so memory does not grow with the model's depth.

    Args:
        entries: session options that the artifact needs to be executed as it is written.

    Returns:
        The measured layers in graph order, and in words what was not measured and why.
    """
    exact, compiled = (onnx.load(path, load_external_data=False) for path in (float_model, artifact))
    layers, skipped = _measurable(exact, compiled, units)
    codes = _code_parameters(compiled, artifact.parent)
    progress.start("measuring the noise of each layer", len(layers) * len(samples))
    for chunk in chunks([layer.unit.node for layer in layers]):
        part = [layer for layer in layers if layer.unit.node in set(chunk)]
        _measure(part, exact, compiled, (float_model.parent, artifact.parent), samples, codes, progress, entries)
    progress.finish()
    return [layer.record() for layer in layers], skipped


def _measurable(
    exact: onnx.ModelProto, compiled: onnx.ModelProto, units: Mapping[str, Unit]
) -> tuple[list[_Layer], str]:
    known, inside, present = outer_values(exact), body_values(exact) | body_values(compiled), outer_values(compiled)
    quantized = {node.input[0]: node.output[0] for node in compiled.graph.node if node.op_type == "QuantizeLinear"}
    layers, in_bodies, fused = [], 0, 0
    for unit in units.values():
        tapped = unit.output
        if unit.form in (Form.FULL, Form.PASS):
            tapped = quantized.get(unit.output, f"{unit.output}_quantized")
        if unit.output in known and tapped in present:
            layers.append(_Layer(unit, tapped, cut_out(unit, tapped, compiled, known)))
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


def _measure(
    layers: list[_Layer],
    exact: onnx.ModelProto,
    compiled: onnx.ModelProto,
    folders: tuple[Path, Path],
    samples: Sequence[Sample],
    codes: Mapping[str, tuple[Array, Array]],
    progress: Progress,
    entries: Mapping[str, str] | None,
) -> None:
    inputs = {i.name for i in exact.graph.input}
    alone = [layer for layer in layers if layer.piece is not None]
    reads = {name for layer in alone if layer.piece for name in layer.piece.reads} - inputs
    float_probe = Probe(exact, [*(layer.unit.output for layer in layers), *sorted(reads)], folders[0])
    compiled_probe = Probe(compiled, [layer.tapped for layer in layers], folders[1], entries)
    pieces = [layer.piece for layer in alone if layer.piece is not None]
    pieces_probe: Probe | None = None
    for sample in samples:
        floats = {**sample, **float_probe(sample)}
        gathered = compiled_probe(sample)
        if pieces and pieces_probe is None:
            model = assemble(pieces, compiled, floats)
            pieces_probe = Probe(model, [o.name for o in model.graph.output], folders[1], entries)
        isolated = pieces_probe(floats) if pieces_probe is not None else {}
        for layer in layers:
            _add(layer, layer.gathered, floats, gathered[layer.tapped], codes)
        for i, layer in enumerate(alone):
            assert layer.piece is not None
            _add(layer, layer.alone, floats, isolated[result_name(i, layer.piece)], codes)
        progress.advance(len(layers))


def _add(
    layer: _Layer, noise: Noise, floats: Mapping[str, Array], found: Array, codes: Mapping[str, tuple[Array, Array]]
) -> None:
    expected = floats[layer.unit.output]
    if layer.tapped in codes:
        scale, zero = codes[layer.tapped]
        found = (found.astype(np.float32) - zero) * scale
    if expected.shape == found.shape:
        noise.add(expected, found)
    else:
        layer.comparable = False


def _code_parameters(artifact: onnx.ModelProto, folder: Path) -> dict[str, tuple[Array, Array]]:
    """Scale and zero point of every activation that exists as codes, by the name of the codes."""
    constants = {i.name: i for i in artifact.graph.initializer}
    found: dict[str, tuple[Array, Array]] = {}
    for node in artifact.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[1] not in constants:
            continue
        scale = onnx.numpy_helper.to_array(constants[node.input[1]], str(folder))
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        shift = onnx.numpy_helper.to_array(zero, str(folder)).astype(np.float32) if zero is not None else np.float32(0)
        found[node.output[0]] = scale, np.asarray(shift)
    return found
