"""Layers that became one product are proved as what they are: one layer, known in the float state too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import SilentProgress
from qcompile.compiler.diff import Change, diff
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Merging
from qcompile.compiler.verification.layers import measure_layers
from qcompile.compiler.verification.reference import Reference
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import compiled
from tests.passes.llama import WIDTH, llama
from tests.sweep.harness import compile_in_memory, eager_target

MERGES = replace(eager_target(), merging=Merging("for this test"))
SAMPLES = [{"x": np.random.default_rng(i).standard_normal((1, 6, WIDTH)).astype(np.float32)} for i in range(4)]


def test_the_noise_of_each_merged_layer_is_measured_and_its_sources_are_told(tmp_path: Path) -> None:
    proto = ir.to_proto(llama(layers=2))
    result = compiled(proto, SAMPLES, target=MERGES)
    merged = [u for u in result.plan.units.values() if u.node.endswith("_merged")]
    assert len(merged) == 4, "queries with keys and values, gate with up, in each of two blocks"
    path, state = tmp_path / "int8.onnx", result.context.unquantized
    path.write_bytes(result.data)
    assert state is not None
    layers, skipped = measure_layers(Reference.of_state(state), path, result.plan.units, SAMPLES[:1], SilentProgress())
    assert skipped == ""
    found = {layer.node: layer for layer in layers}
    for unit in merged:
        assert (found[unit.node].isolated_sqnr or 0) > 25
        assert (found[unit.node].sqnr or 0) > 15
    (tmp_path / "float.onnx").write_bytes(proto.SerializeToString())
    rows = [n for n in diff(tmp_path / "float.onnx", path).nodes if len(n.before) > 1 and Change.FUSED in n.changes]
    assert sorted([ref.op_type for ref in row.before] for row in rows) == [["MatMul"] * 2] * 2 + [["MatMul"] * 3] * 2
    assert all([ref.op_type for ref in row.after][1:] == ["Split"] for row in rows)


def test_a_user_who_keeps_a_layer_float_keeps_what_it_became_part_of() -> None:
    proto = ir.to_proto(llama(layers=1))
    keys = next(i for i, node in enumerate(proto.graph.node) if "w_k0" in node.input)
    result = compiled(proto, SAMPLES, f"place-int8.keep-float=[MatMul_{keys}]", target=MERGES)
    kept = {name: why for name, why in result.plan.kept_float.items() if "keep-float" in why}
    assert [name.endswith("_merged") for name in kept] == [True]


def test_on_cuda_layers_behind_a_norm_that_writes_codes_are_measured_and_told_apart(tmp_path: Path) -> None:
    proto, cuda = ir.to_proto(llama(layers=1)), target_named("cuda")
    done = compile_in_memory(proto, SAMPLES, find_recipe("int8-dynamic").passes(), cuda)
    first, second, state = tmp_path / "float.onnx", tmp_path / "int8.onnx", done.context.unquantized
    first.write_bytes(proto.SerializeToString())
    second.write_bytes(done.data)
    assert state is not None
    units = done.context.plan.units
    layers, skipped = measure_layers(Reference.of_state(state), second, units, SAMPLES[:1], SilentProgress())
    assert skipped == ""
    assert len(layers) == len(units) == 5
    assert all((layer.isolated_sqnr or 0) > 25 for layer in layers)
    changed = [n for n in diff(first, second).nodes if n.changes]
    norms = [n for n in changed if any("NormQuant" in ref.op_type for ref in n.after)]
    assert [len(n.after) for n in norms] == [1, 1], "a norm is a row of its own"
    assert sum(Change.QUANTIZED in n.changes for n in changed) == 5
