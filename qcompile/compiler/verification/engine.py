"""Units in the layers of a TensorRT engine: which compute on codes, and which the builder turned back into float.

A layer stands for ONNX nodes and says what it reads. A unit with n quantized operands runs in low precision where one
of its layers reads n tensors of codes; the others that bear its name are what the builder split off, such as its bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.compiler.graph import nodes
from qcompile.compiler.plan import Unit
from qcompile.compiler.report import Proof, UnitRecord
from qcompile.compiler.verification.expectations import dequantizer
from qcompile.errors import QCompileError
from qcompile.runtime.engine_builder import Built, build
from qcompile.runtime.engine_layers import EngineLayer
from qcompile.runtime.providers import builder_of, compiled_options


def read(
    artifact: Path,
    model: ir.Model,
    units: Mapping[str, Unit],
    shapes: Mapping[str, Sequence[int]],
) -> tuple[Proof | None, list[UnitRecord], str]:
    """What NVIDIA's builder makes of the artifact.

    Args:
        model: the artifact, loaded.
        shapes: input name -> the shape to build for.

    Returns:
        A proof that failed or could not be made; one record for each unit; which builder it was.
    """
    try:
        provider = builder_of(artifact)
        built = build(artifact, shapes, compiled_options(artifact, provider), provider)
    except QCompileError as error:
        records = [_record(unit, None, None, "no engine was built") for unit in units.values()]
        return Proof(name="dispatch", passed=None, detail=error.what), records, ""
    if built.refused:
        return _refused(built), [_record(u, None, None, "no engine was built") for u in units.values()], built.builder
    quantized = {str(node.name): _operands(node) for node in nodes(model)}
    by_node: dict[str, list[EngineLayer]] = {}
    for layer in built.layers:
        for name in layer.nodes:
            by_node.setdefault(name, []).append(layer)
    records = [
        _unit(unit, [*by_node.get(unit.node, ()), *by_node.get(unit.lowered, ())], quantized.get(unit.node, 1))
        for unit in units.values()
    ]
    return None, records, built.builder


def _operands(node: ir.Node) -> int:
    """How many different tensors of codes `node` reads through DequantizeLinear."""
    return len({id(conversion.inputs[0]) for v in node.inputs if (conversion := dequantizer(v)) is not None})


def _unit(unit: Unit, layers: Sequence[EngineLayer], operands: int) -> UnitRecord:
    if not layers:
        return _record(unit, None, False, "no layer of the engine stands for it")
    best = max(layers, key=lambda layer: len(layer.codes))
    kernel = " ".join([*(["sparse"] if best.sparse else []), *dict.fromkeys(best.codes), best.kind])
    if len(best.codes) >= max(1, operands):
        return _record(unit, kernel, True, "")
    if unit.form.float_arithmetic:
        return _record(unit, kernel, False, "a kernel of its own turns its codes into floats, each time the model runs")
    return _record(unit, kernel, False, f"the engine runs it on {' and '.join(dict.fromkeys(best.inputs))}")


def _refused(built: Built) -> Proof:
    broken = [refusal for refusal in built.refused if not refusal.unsupported]
    first = (broken or list(built.refused))[0]
    more = f" (and {len(built.refused) - 1} more)" if len(built.refused) > 1 else ""
    detail = f"{built.builder} refuses {first.node}: {first.reason}{more}"
    return Proof(name="dispatch", passed=False if broken else None, detail=detail)


def _record(unit: Unit, kernel: str | None, proved: bool | None, reason: str) -> UnitRecord:
    return UnitRecord(
        node=unit.node, op_type=unit.op_type, form=unit.form.value, kernel=kernel, proved=proved, reason=reason
    )
