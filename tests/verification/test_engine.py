"""The proof of dispatch on TensorRT where no GPU is: the layers of an engine that NVIDIA's builder makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification import engine
from qcompile.compiler.verification.dispatch import Dispatch, prove_dispatch
from qcompile.errors import TargetError
from qcompile.runtime.engine_builder import Built, Refusal
from qcompile.runtime.engine_layers import EngineLayer
from qcompile.runtime.providers import TENSORRT, why_not_loaded
from tests.verification.qdq_models import Builder, asymmetric, plain, residual

pytestmark = pytest.mark.skipif(not why_not_loaded(TENSORRT), reason="TensorRT itself is here")

LAYER = EngineLayer("p_myl0", "gemm", ("int8", "int8"), ("float32",), "", ("p", "d", "w"))


def prove(model: onnx.ModelProto, folder: Path) -> Dispatch:
    onnx.save(model, folder / "m.onnx")
    return prove_dispatch(folder / "m.onnx", target_named("tensorrt"))


@pytest.mark.parametrize(("make", "kernels"), [(plain, {"n_y": "int8 correlation"}), (residual, {"n_c", "n_y"})])
def test_units_that_run_on_codes(make: object, kernels: dict[str, str] | set[str], tmp_path: Path) -> None:
    found = prove(make(), tmp_path)  # type: ignore[operator]
    assert found.proof.passed
    assert "TensorRT-RTX" in found.proof.detail
    assert "does not load" in found.proof.detail
    assert {unit.node for unit in found.units} == set(kernels)
    assert all(unit.proved and unit.kernel and unit.kernel.startswith("int8") for unit in found.units)


def test_a_model_that_the_builder_refuses(tmp_path: Path) -> None:
    found = prove(asymmetric(), tmp_path)
    assert found.proof.passed is False
    assert "n_x_quantized: Assertion failed" in found.proof.detail
    assert "Non-zero zero point" in found.proof.detail


def test_an_operator_that_stays_outside_is_no_failure(tmp_path: Path) -> None:
    b = Builder(signed=True)
    b.weight("W", np.random.default_rng(0).standard_normal((4, 4)), 1)
    b.node("Det", [b.node("MatMul", [b.convert("x"), "W_dequantized"], "p")], "y")
    found = prove(b.model({"x": [4, 4]}, ["y"]), tmp_path)
    assert found.proof.passed is None
    assert "refuses n_y" in found.proof.detail
    assert [unit.proved for unit in found.units] == [None]


@pytest.mark.parametrize(
    ("layers", "form", "proved", "reason"),
    [
        ([LAYER], Form.INPUTS, True, ""),
        ([], Form.INPUTS, False, "no layer of the engine"),
        ([EngineLayer("p", "gemm", ("float16", "float16"), (), "", ("p",))], Form.INPUTS, False, "runs it on float16"),
        ([EngineLayer("p", "gemm", ("float16", "int8"), (), "", ("p",))], Form.INPUTS, False, "float16 and int8"),
        ([EngineLayer("p", "kgen", ("float32",), (), "", ("p",)), LAYER], Form.INPUTS, True, ""),
        ([EngineLayer("p", "gemm", ("float32",) * 2, (), "", ("p",))], Form.WEIGHTS, False, "turns its codes into"),
    ],
)
def test_what_layers_say_of_a_unit(
    layers: list[EngineLayer],
    form: Form,
    proved: bool,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    b = Builder(signed=True)
    b.weight("W", np.random.default_rng(0).standard_normal((4, 4)), 1)
    b.node("MatMul", [b.convert("x"), "W_dequantized"], "y")
    model = b.model({"x": [4, 4]}, ["y"])
    model.graph.node[-1].name = "p"
    monkeypatch.setattr(engine, "build", lambda *_: Built("a builder", tuple(layers), (), 1))
    unit = Unit("p", "MatMul", form, ("x", None), "y")
    fault, [record], builder = engine.read(tmp_path, ir.from_proto(model), {"p": unit}, {})
    assert (fault, builder, record.proved) == (None, "a builder", proved)
    assert reason in record.reason


def test_what_breaks_a_rule_is_named_before_what_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = (Refusal("a", "no such operator", True), Refusal("b", "scale is negative", False))
    monkeypatch.setattr(engine, "build", lambda *_: Built("a builder", (), refused, 0))
    fault, _, _ = engine.read(tmp_path, ir.from_proto(plain()), {}, {})
    assert fault is not None
    assert fault.passed is False
    assert "refuses b: scale is negative (and 1 more)" in fault.detail


def test_a_builder_that_gives_up_says_nothing_of_the_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*_: object) -> Built:
        raise TargetError("TensorRT's builder ended: out of memory")

    monkeypatch.setattr(engine, "build", gives_up)
    unit = Unit("p", "MatMul", Form.INPUTS, ("x", None), "y")
    proof, [record], _ = engine.read(tmp_path, ir.from_proto(plain()), {"p": unit}, {})
    assert (proof and proof.passed, record.proved, record.reason) == (None, None, "no engine was built")
