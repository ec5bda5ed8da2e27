"""TensorRT's rules for explicit Q/DQ: graphs it takes, and graphs that break one rule each, beside NVIDIA's builder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.legality import find_faults, prove_legality
from qcompile.errors import TargetError
from qcompile.runtime.engine_builder import build, why_no_builder
from qcompile.runtime.providers import TENSORRT, builder_entries, session_entries
from qcompile.runtime.taps import Probe
from tests.targets.tensorrt_cases import CASES
from tests.verification.qdq_models import Builder, convolutions

TARGET = target_named("tensorrt")
builder_here = pytest.mark.skipif(bool(why_no_builder()), reason=why_no_builder())


@pytest.mark.parametrize("name", CASES)
def test_legal_or_refused_with_the_rule(name: str) -> None:
    case = CASES[name]
    faults = find_faults(ir.from_proto(case.model()), TARGET)
    if not case.refused:
        assert faults == []
        return
    fault = next((fault for fault in faults if case.refused in str(fault)), None)
    assert fault is not None, faults
    assert fault.remedy


def test_every_rule_of_the_table_has_a_case() -> None:
    said = [fault.rule for case in CASES.values() for fault in find_faults(ir.from_proto(case.model()), TARGET)]
    assert {rule.fault for rule in TARGET.rules} <= set(said)


@builder_here
def test_nvidias_builder_says_the_same(tmp_path: Path) -> None:
    """What it refuses we refuse, and what we take it takes."""
    command = [sys.executable, "-m", "tests.targets.tensorrt_cases", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: bool(words) for name, words in said.items()} == {
        name: case.builder == "refuses" for name, case in CASES.items() if case.builder != "dies"
    }
    assert all(case.builder == "takes" for case in CASES.values() if not case.refused)


@builder_here
def test_the_builder_does_not_survive_a_scale_that_is_computed(tmp_path: Path) -> None:
    for name, case in CASES.items():
        if case.builder == "dies":
            onnx.save(case.model(), tmp_path / "case.onnx")
            with pytest.raises(TargetError, match="builder ended"):
                build(tmp_path / "case.onnx")
            assert "constant" in CASES[name].refused


def test_the_proof_counts_and_names_the_faults() -> None:
    proof = prove_legality(ir.from_proto(convolutions()), TARGET)
    assert proof.passed is False
    assert "n_x_quantized" in proof.detail


def test_a_float_bias_stays_float_when_the_cpu_stands_in() -> None:
    """ONNX Runtime would make an int32 bias of it and saturate that in a channel of tiny weights."""
    random = np.random.default_rng(0)
    b = Builder(signed=True)
    weight = random.standard_normal((4, 4, 3, 3))
    weight[2] *= 1e-12
    b.weight("W", weight, 0)
    b.node("Conv", [b.convert("x"), "W_dequantized", b.constant("b", np.full(4, 5, np.float32))], "c")
    b.node("Softmax", [b.convert("c")], "y")
    model = b.model({"x": [1, 4, 8, 8]}, ["y"])
    sample = {"x": random.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    as_written = Probe(model, ["c"], entries=session_entries(TENSORRT))(sample)["c"]
    assert np.allclose(as_written[0, 2], 5, atol=1e-3)


def test_the_builder_sees_the_codes_of_weights(tmp_path: Path) -> None:
    """What ONNX Runtime does before it hands the graph to a provider, seen on the CPU at its first level."""
    import onnxruntime as ort

    model = convolutions(signed=True)
    left: dict[bool, int] = {}
    for guarded in (False, True):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "seen.onnx")
        for entry, value in (session_entries(TENSORRT) | (builder_entries(TENSORRT) if guarded else {})).items():
            options.add_session_config_entry(entry, value)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        seen = onnx.load(tmp_path / "seen.onnx").graph.node
        left[guarded] = sum(node.op_type == "DequantizeLinear" for node in seen)
    written = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    assert left[True] == written
    assert left[False] < written, "ONNX Runtime no longer folds them: builder_entries can go"
