"""Compiling a model in memory with the packaged recipe, and what must hold of any result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import nodes
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Cost, Target
from qcompile.frontends.builtin_recipes import find_recipe

Arrays = list[npt.NDArray[Any]]

RECIPE = find_recipe("int8-static").with_overrides(["calibrate.method=min-max"]).passes()
"""int8-static whose clips cut nothing off: on a few random values any other clip may cut what the output is made of."""

PREPARE = [p for p in RECIPE if p.phase is Phase.PREPARE]


def eager_target() -> Target:
    """The CPU's table with float made endlessly slow: whatever may run in int8 does.

    On graphs of a few thousand operations float is rightly the fastest, so nothing would be tried.
    """
    cpu = target_named("cpu")
    return replace(cpu, rows=tuple(replace(r, float_cost=Cost(fixed=1e9)) for r in cpu.rows))


class Samples(list[Sample]):
    """Calibration data in memory."""

    description = "in memory"
    synthetic = False

    def digest(self) -> str:
        return ""


@dataclass
class Compiled:
    """A compiled model: `float_nodes` are the nodes of the prepared float graph, by name."""

    data: bytes
    context: CompileContext
    float_nodes: dict[str, ir.Node]


def compile_in_memory(
    model: onnx.ModelProto, samples: Sequence[Sample], passes: Sequence[Pass], target: Target | None = None
) -> Compiled:
    graph = ir.from_proto(model)
    context = CompileContext(
        target or target_named("cpu"), Path("unused"), calibration=Samples(samples), held_out=[samples[0]]
    )
    float_nodes: dict[str, ir.Node] = {}

    def remember(done: Pass, now: ir.Model) -> None:
        if done.phase is Phase.PREPARE:
            float_nodes.clear()
            float_nodes.update((str(n.name), n) for n in nodes(now.clone()))

    run_pipeline(passes, graph, context, remember)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return Compiled(proto.SerializeToString(), context, float_nodes)


def session(data: bytes, *, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def unaccounted(compiled: Compiled) -> list[str]:
    """Nodes with a row in the target's table that are neither a unit nor kept float with a reason."""
    plan, target = compiled.context.plan, compiled.context.target
    known = set(plan.units) | {u.bias for u in plan.units.values()} | {n for n, why in plan.kept_float.items() if why}
    return [
        f"{name} ({node.op_type})"
        for name, node in compiled.float_nodes.items()
        if target.row(node) is not None and name not in known and not _computes_integers(node)
    ]


def _computes_integers(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    return dtype is not None and not dtype.is_floating_point()


def sqnr(expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    """Signal to noise in dB; infinite where there is no noise."""
    signal, noise = (float(np.mean(np.square(v, dtype=np.float64))) for v in (expected, got - expected))
    return np.inf if noise == 0 else float(10 * np.log10(max(signal, 1e-30) / noise))
