"""Packaged recipes for TensorRT: legal, true to the float model, read as codes by an engine, and with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import qcompile
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification import engine, prove
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.legality import find_faults
from qcompile.errors import TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.runtime.engine_builder import why_no_builder
from qcompile.runtime.model_header import manifest
from qcompile.runtime.providers import TENSORRT, session_entries
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal
from tests.sweep.harness import Compiled, compile_in_memory, sqnr
from tests.targets.half_models import MODELS, half_model
from tests.targets.test_weight_formats import MODEL

RTX = "NvTensorRTRTXExecutionProvider"
TARGET = target_named("tensorrt")
HALF = {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"}
INT8 = HALF | {"trt_int8_enable": "1"}
BOTH: dict[str, dict[str, str]] = {TENSORRT: INT8, RTX: {}}
RTX_ALONE: dict[str, dict[str, str]] = {RTX: {}}
OPTIONS: dict[str, dict[str, dict[str, str]]] = {
    "fp16": {TENSORRT: HALF, RTX: {}},
    "int8-static": BOTH,
    "int8-smoothquant": BOTH,
    "int8-accurate": BOTH,
    "int8-weight-only": BOTH,
    "fp8-static": RTX_ALONE,
    "fp8-weight-only": RTX_ALONE,
    "int4-rtn": RTX_ALONE,
    "int4-gptq": RTX_ALONE,
    "int4-awq": RTX_ALONE,
    "int4-accurate": RTX_ALONE,
    "svdquant-int4": RTX_ALONE,
}
"""The providers that can run what each recipe makes, and the options it needs there."""

_WIDTH, _INNER = 256, 512
SAMPLES = [{"ids": np.random.default_rng(i).integers(0, _INNER, (1, 16))} for i in range(4)]


def layers() -> onnx.ModelProto:
    """An embedding, a norm, two linear layers, a residual Add and a head."""
    weights = {
        "table": normal(_INNER, _WIDTH), "w": normal(_WIDTH, _INNER) / 16, "v": normal(_INNER, _WIDTH) / 22,
        "h": normal(_WIDTH, _INNER) / 16, "bias": normal(_WIDTH), "g": np.ones(_WIDTH, np.float32),
        "c": np.zeros(_WIDTH, np.float32),
    }  # fmt: skip
    return ir.to_proto(model_of(MODEL.replace("96", str(_INNER)), weights))


def run(data: bytes, sample: dict[str, Any]) -> Any:
    """On the CPU, with the options under which TensorRT's artifacts are proved."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for entry, value in session_entries(TENSORRT).items():
        options.add_session_config_entry(entry, value)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, sample)[0]


@pytest.fixture(scope="module")
def artifacts() -> dict[str, Compiled]:
    proto = layers()
    return {name: compile_in_memory(proto, SAMPLES, find_recipe(name).passes(), TARGET) for name in OPTIONS}


@pytest.mark.parametrize("recipe", OPTIONS)
def test_legal_true_and_with_its_options(recipe: str, artifacts: dict[str, Compiled]) -> None:
    made = artifacts[recipe]
    model = ir.from_proto(onnx.load_from_string(made.data))
    assert find_faults(model, TARGET) == []
    assert TARGET.provider_options(model) == OPTIONS[recipe]
    assert set(TARGET.closed_ways(model)) == {TENSORRT, RTX} - set(OPTIONS[recipe])
    assert {v.dtype for v in model.graph.outputs} == {ir.DataType.FLOAT}
    assert any(v.dtype is ir.DataType.FLOAT16 for node in model.graph for v in node.outputs)
    assert recipe == "fp16" or len(made.context.plan.units) == 3
    least = 60 if recipe == "fp16" else 18 if recipe.startswith(("int4", "fp8", "svdquant")) else 30
    assert sqnr(run(layers().SerializeToString(), SAMPLES[0]), run(made.data, SAMPLES[0])) > least


@pytest.mark.skipif(bool(why_no_builder()), reason=why_no_builder())
@pytest.mark.parametrize(
    "recipe", ["int8-static", "fp8-static", "int4-rtn", "int8-weight-only", "fp8-weight-only", "svdquant-int4"]
)
def test_layers_of_an_engine_read_the_codes(recipe: str, artifacts: dict[str, Compiled], tmp_path: Path) -> None:
    made = artifacts[recipe]
    (tmp_path / "m.onnx").write_bytes(made.data)
    model = ir.load(tmp_path / "m.onnx")
    fault, records, _ = engine.read(tmp_path / "m.onnx", model, made.context.plan.units, {"ids": [1, 16]})
    assert fault is None
    codes = {node: kernel.split()[0] for node, kernel in ((r.node, r.kernel or "") for r in records) if kernel}
    wanted = "int4" if "int4" in recipe else recipe.split("-")[0]
    assert list(codes.values()) == ([wanted, wanted, "int8"] if wanted == "int4" else [wanted] * 3), "an 8-bit head"
    assert all(record.proved for record in records)


def attention() -> onnx.ModelProto:
    text = """g (float[N,S,256] x) => (float[N,S,256] y) {
      q = MatMul (x, wq) q1 = Reshape (q, heads) q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
      k = MatMul (x, wk) k1 = Reshape (k, heads) k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
      v = MatMul (x, wv) v1 = Reshape (v, heads) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
      s = MatMul (q2, k2) p = Softmax <axis = -1> (s) c = MatMul (p, v2)
      d = Transpose <perm = [0, 2, 1, 3]> (c) e = Reshape (d, rows) y = MatMul (e, wo) }"""
    weights = {name: normal(256, 256, seed=i) / 16 for i, name in enumerate(("wq", "wk", "wv", "wo"))}
    shapes = {"heads": np.array([0, 0, 8, 32]), "rows": np.array([0, 0, 256])}
    return ir.to_proto(model_of(head(21) + text, weights | shapes))


@pytest.mark.skipif(bool(why_no_builder()), reason=why_no_builder())
def test_the_projection_behind_one_sequence_is_restored(tmp_path: Path) -> None:
    """Of int4 weights; docs/tensorrt.md says so."""
    made = compile_in_memory(attention(), [{"x": normal(1, 8, 256)}], find_recipe("int4-rtn").passes(), TARGET)
    (tmp_path / "m.onnx").write_bytes(made.data)
    found = {}
    for batch in (1, 2):
        _, records, _ = engine.read(
            tmp_path / "m.onnx", ir.load(tmp_path / "m.onnx"), made.context.plan.units, {"x": [batch, 8, 256]}
        )
        found[batch] = [record.proved for record in records]
    assert found == {1: [True, True, True, False], 2: [True] * 4}


@pytest.fixture(scope="module")
def small_scales(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A float model, the FP8 artifact, where biases are 10^5 steps of s_x * s_w, and a sample."""
    folder, random = tmp_path_factory.mktemp("small_scales"), np.random.default_rng(1)
    text = "g (float[N,16] x) => (float[N,16] y) { a = Gemm (x, w, b) c = Relu (a) y = Gemm (c, v, b) }"
    weights = {"w": normal(16, 16), "v": normal(16, 16, seed=1), "b": normal(16) * 2}
    ir.save(model_of(head(21) + text, weights), folder / "float.onnx")
    sample = {"x": random.random((4, 16)).astype(np.float32)}
    np.savez(folder / "x.npz", **sample)
    made = qcompile.compile(
        folder / "float.onnx",
        "fp8-static",
        calibration=folder / "x.npz",
        target="tensorrt",
        output=folder / "m.onnx",
        prove=False,
    )
    return folder / "float.onnx", made.path, sample


def test_a_session_on_the_cpu_keeps_biases(small_scales: tuple[Path, Path, dict[str, Any]]) -> None:
    """ONNX Runtime would turn them into int32, by way of float16, which does not reach so far."""
    original, artifact, sample = small_scales
    exact = ort.InferenceSession(original, providers=["CPUExecutionProvider"]).run(None, sample)[0]
    assert sqnr(exact, qcompile.Session(artifact, ["cpu"])(sample)["y"]) > 20


@pytest.mark.skipif(bool(why_no_builder()), reason=why_no_builder())
def test_dispatch_of_what_only_the_second_way_takes(small_scales: tuple[Path, Path, dict[str, Any]]) -> None:
    _, artifact, sample = small_scales
    proof = prove_dispatch(artifact, TARGET, shapes={"x": sample["x"].shape}).proof
    assert proof.passed
    assert "2 fp8 gemm" in proof.detail


def test_convolutions_in_int8() -> None:
    proto, (_, sample) = half_model("convolutions"), MODELS["convolutions"]
    made = compile_in_memory(proto, [sample], find_recipe("int8-static").passes(), TARGET)
    model = ir.from_proto(onnx.load_from_string(made.data))
    assert find_faults(model, TARGET) == []
    assert {unit.op_type for unit in made.context.plan.units.values()} == {"Conv", "Gemm", "Add"}
    biases = [node.inputs[2] for node in model.graph if node.op_type == "Conv" and len(node.inputs) > 2]
    assert {value.dtype for value in biases if value is not None} == {ir.DataType.FLOAT16}, "biases stay float"


def test_transposed_convolutions_stay_float_with_the_reason() -> None:
    text = "g (float[1,8,6,6] x) => (float[1,8,8,8] y) { y = ConvTranspose (x, w) }"
    proto, sample = ir.to_proto(model_of(head(21) + text, {"w": normal(8, 8, 3, 3)})), {"x": normal(1, 8, 6, 6)}
    made = compile_in_memory(proto, [sample], find_recipe("int8-static").passes(), TARGET)
    assert not made.context.plan.units
    assert "slower than float16" in next(iter(made.context.plan.kept_float.values()))


def test_zero_points_are_refused(artifacts: dict[str, Compiled]) -> None:
    """AWQ's recipe gives 4-bit weights some where a target has them."""
    weights = artifacts["int4-awq"].context.plan.weights.values()
    assert not any(weight.params.zero_point.any() for weight in weights)
    passes = find_recipe("int4-awq").with_overrides(["place-weights.symmetric=false"]).passes()
    with pytest.raises(TargetError, match="stores no asymmetric int4"):
        compile_in_memory(layers(), SAMPLES, passes, TARGET)


def test_the_cpu_stands_in_where_the_provider_cannot_run_it(
    artifacts: dict[str, Compiled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with a GPU and TensorRT, whose provider would fail to build an engine."""
    monkeypatch.setattr(prove, "why_not_loaded", lambda _: "")
    onnx.save(layers(), tmp_path / "float.onnx")
    (tmp_path / "m.onnx").write_bytes(artifacts["int4-rtn"].data)
    report = prove.verify(tmp_path / "m.onnx", TARGET, against=tmp_path / "float.onnx", samples=SAMPLES[:1])
    proofs = {proof.name: proof for proof in report.proofs}
    assert f"{TENSORRT} cannot run it: it has no option that lets an engine compute with INT4" in proofs["speed"].detail
    assert proofs["numerics"].passed


def _pruned(*shape: int) -> Any:
    weight = normal(*shape)
    weight[:, ::2] = 0
    return weight


@pytest.mark.parametrize("sparse", [True, False])
def test_the_manifest_carries_the_options(sparse: bool, tmp_path: Path) -> None:
    text = "g (float[1,8,6,6] x) => (float[1,8,4,4] y) { y = Conv (x, w) }"
    weight = _pruned(8, 8, 3, 3) if sparse else normal(8, 8, 3, 3)
    ir.save(model_of(head() + text, {"w": weight}), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(1, 8, 6, 6))
    found = {}
    for recipe in ("int8-static", "fp8-static"):
        made = qcompile.compile(
            tmp_path / "m.onnx",
            recipe,
            calibration=tmp_path / "x.npz",
            target="tensorrt",
            output=tmp_path / f"{recipe}.onnx",
            prove=False,
        )
        found[recipe] = (manifest(made.path) or {})["provider_options"], made.report.notices
    options = {"trt_sparsity_enable": "1"} if sparse else {}
    assert found["int8-static"][0] == {TENSORRT: INT8 | options, RTX: {}}
    assert found["fp8-static"][0] == {RTX: {}}
    assert any(TENSORRT in notice and "FP8" in notice and RTX in notice for notice in found["fp8-static"][1])


def test_other_targets_say_nothing_of_providers(tmp_path: Path) -> None:
    ir.save(model_of(head() + "g (float[1,8] x) => (float[1,8] y) { y = MatMul (x, w) }", {"w": normal(8, 8)}),
            tmp_path / "m.onnx")  # fmt: skip
    made = qcompile.compile(tmp_path / "m.onnx", "int8-weight-only", output=tmp_path / "o.onnx", prove=False)
    assert "provider_options" not in (manifest(made.path) or {})
