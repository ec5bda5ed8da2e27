"""Shapes of activations as a sample gives them: one run answers with shapes, no activation leaves the runtime."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qcompile.compiler.context import Sample
from qcompile.compiler.graph import name_of
from qcompile.compiler.serialization import runnable
from qcompile.runtime.calibration import run_samples

Shape = tuple[int, ...]


def shapes_of(
    values: Iterable[ir.Value], model: ir.Model, sample: Sample | None, providers: tuple[str, ...]
) -> dict[str, Shape]:
    """Shapes by name of values of the main graph: as the graph has them where they are fixed, else of `sample`.

    Without a sample the others are left out.
    """
    found: dict[str, Shape] = {}
    unknown: list[str] = []
    for value in dict.fromkeys(values):
        if value.shape is not None and value.shape.is_static():
            found[name_of(value)] = tuple(value.shape.numpy())
        else:
            unknown.append(name_of(value))
    return found | (_observed(unknown, model, sample, providers) if sample is not None and unknown else {})


def _observed(names: list[str], model: ir.Model, sample: Sample, providers: tuple[str, ...]) -> dict[str, Shape]:
    asked = model.clone()
    known = {v.name: v for v in asked.graph.inputs} | {v.name: v for node in asked.graph for v in node.outputs}
    asked.graph.outputs.clear()
    for i, name in enumerate(names):
        node = ir.node("Shape", [known[name]], name=f"shape {i}")
        node.outputs[0].name = f"shape {i}"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        asked.graph.append(node)
        asked.graph.outputs.append(node.outputs[0])
    with runnable(asked) as data:
        outputs = next(iter(run_samples(data, [sample], providers)))
    return {name: tuple(int(size) for size in shape) for name, shape in zip(names, outputs, strict=True)}
