"""Adapters merged into models whose weights are codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import DataError
from qcompile.frontends import lora
from qcompile.frontends.api import compile
from qcompile.runtime.session import Session
from tests.passes.adapters import low_rank, sqnr, write
from tests.passes.harness import Arrays, model_of, outputs


@pytest.mark.parametrize(
    ("recipe", "target", "operator", "least"),
    [
        ("int4-rtn", "cpu", "MatMulNBits", 20),
        ("int8-weight-only", "cpu", "MatMulNBits", 40),
        ("nf4", "cpu", "MatMul", 18),
        ("nf4", "cuda", "MatMulBnb4", 18),
        ("int4-rtn", "tensorrt", "MatMul", 17),
        ("int8-static", "cpu", "MatMulIntegerToFloat", 35),
        ("int8-dynamic", "cpu", "DynamicQuantizeMatMul", 35),
        ("int8-static", "tensorrt", "MatMul", 35),
    ],
)
def test_merge_into_codes(recipe: str, target: str, operator: str, least: float, tmp_path: Path) -> None:
    """Codes of the sum, on the spec of the base: an adapter of zeros changes nothing, another one is rounded in."""
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[64,128] x) => (float[64,64] y) { y = MatMul (x, w) }'
    rng = np.random.default_rng(0)
    model = model_of(text, {"w": rng.standard_normal((128, 64)).astype(np.float32)})
    next(iter(model.graph)).name = "/m/a/MatMul"
    ir.save(model, tmp_path / "float.onnx")
    feeds = {"x": rng.standard_normal((64, 128)).astype(np.float32)}
    samples = [feeds] if recipe == "int8-static" else None
    all_layers = ["place-weights.layers=[]"]  # the head too
    options = {"nf4": all_layers, "int4-rtn": all_layers, "int8-dynamic": ["place-dynamic.per_token=false"]}
    made = compile(
        tmp_path / "float.onnx",
        recipe,
        target=target,
        calibration=samples,
        overrides=options.get(recipe, ()),
        prove=False,
    ).path
    tensors = low_rank("m.a", 64, 128)
    nothing = write(tmp_path / "nothing", {name: array * ("lora_A" in name) for name, array in tensors.items()})
    base = Session(made, ["cpu"])(feeds)["y"]
    same = Session(lora.merge(made, nothing).model, ["cpu"])(feeds)["y"]
    assert sqnr(base, same) > 60
    merged = lora.merge(made, write(tmp_path / "some", tensors))
    wanted = base + feeds["x"] @ (2 * tensors["m.a.lora_B.weight"] @ tensors["m.a.lora_A.weight"]).T
    assert sqnr(wanted, Session(merged.model, ["cpu"])(feeds)["y"]) > least
    assert "rounded anew" in merged.notices[1]
    assert operator in [node.op_type for node in ir.load(merged.model).graph]


def test_codes_that_are_not_written_anew(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[B,128] x) => (float[B,64] y) { y = MatMul (x, w) }'
    model = model_of(text, {"w": np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)})
    next(iter(model.graph)).name = "/m/a/MatMul"
    ir.save(model, tmp_path / "float.onnx")
    made = compile(tmp_path / "float.onnx", "int8-dynamic", target="cuda", prove=False).path
    with pytest.raises(DataError, match="no layer of their own") as error:
        lora.merge(made, write(tmp_path / "some", low_rank("m.a", 64, 128)))
    assert "cannot be rounded anew: merge the adapter into the float model" in error.value.hint


def test_merge_into_a_convolution_with_an_integer_bias(tmp_path: Path) -> None:
    """The scale of the bias follows that of the weight, and its codes are rounded anew with it."""
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[B,4,8,8] x) => (float[B,6,6,6] y)
      { w = DequantizeLinear <axis = 0> (codes, scale) b = DequantizeLinear <axis = 0> (bias, bias_scale)
        y = Conv (x, w, b) }"""
    rng = np.random.default_rng(0)
    scale, of_input = np.linspace(0.01, 0.02, 6, dtype=np.float32), np.float32(0.05)
    constants: Arrays = {
        "codes": rng.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8),
        "scale": scale,
        "bias": rng.integers(-9000, 9000, 6).astype(np.int32),
        "bias_scale": scale * of_input,
    }
    model = model_of(text, constants)
    model.graph[2].name = "/m/a/Conv"
    ir.save(model, tmp_path / "theirs.onnx")
    kernel = _kernel("m.a")
    merged = lora.merge(tmp_path / "theirs.onnx", write(tmp_path / "some", kernel)).model
    stored = {name: value.const_value.numpy() for name, value in ir.load(merged).graph.initializers.items()}  # type: ignore[union-attr]
    np.testing.assert_allclose(stored["bias_scale"], stored["scale"] * of_input, rtol=1e-6)
    assert (stored["scale"] > 1.5 * scale).all(), "or the test shows nothing"
    bias = constants["bias"] * constants["bias_scale"]
    np.testing.assert_allclose(stored["bias"] * stored["bias_scale"], bias, atol=stored["bias_scale"].max())
    delta = 2 * np.einsum("nr,rchw->nchw", kernel["m.a.lora_B.weight"][:, :, 0, 0], kernel["m.a.lora_A.weight"])
    weight = constants["codes"] * scale[:, None, None, None] + delta
    feeds = {"x": rng.standard_normal((2, 4, 8, 8)).astype(np.float32)}
    plain = model_of(
        '<ir_version: 10, opset_import: ["": 21]> g (float[B,4,8,8] x) => (float[B,6,6,6] y) { y = Conv (x, w, b) }',
        {"w": weight.astype(np.float32), "b": bias.astype(np.float32)},
    )
    assert sqnr(outputs(plain, feeds)[0], Session(merged, ["cpu"])(feeds)["y"]) > 38


def test_merge_into_a_model_that_others_quantized(tmp_path: Path) -> None:
    """Codes without a sign, a zero point that is not in the middle, and a layer that is still float."""
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[B,8] x) => (float[B,4] y)
      { w = DequantizeLinear <axis = 1> (codes, scale, zero) h = MatMul (x, w) y = MatMul (h, v) }"""
    rng = np.random.default_rng(0)
    constants: Arrays = {
        "codes": rng.integers(0, 256, (8, 6), np.uint8),
        "scale": np.linspace(0.01, 0.02, 6, dtype=np.float32),
        "zero": np.array([3, 100, 128, 200, 250, 7], np.uint8),
        "v": rng.standard_normal((6, 4)).astype(np.float32),
    }
    model = model_of(text, constants)
    model.graph[1].name, model.graph[2].name = "/m/a/MatMul", "/m/b/MatMul"
    ir.save(model, tmp_path / "theirs.onnx")
    tensors = low_rank("m.a", 6, 8) | low_rank("m.b", 4, 6, seed=1)
    merged = lora.merge(tmp_path / "theirs.onnx", write(tmp_path / "some", tensors))
    delta = {m: 2 * (tensors[f"m.{m}.lora_B.weight"] @ tensors[f"m.{m}.lora_A.weight"]).T for m in "ab"}
    weight = (constants["codes"].astype(np.float32) - constants["zero"]) * constants["scale"]
    feeds = {"x": rng.standard_normal((16, 8)).astype(np.float32)}
    wanted = feeds["x"] @ (weight + delta["a"]) @ (constants["v"] + delta["b"])
    assert sqnr(wanted, Session(merged.model, ["cpu"])(feeds)["y"]) > 38
    assert "2 layers updated" in merged.notices[0]
    whole = write(tmp_path / "whole", tensors | {"m.a.bias": np.ones(6, np.float32)})
    with pytest.raises(DataError, match=r"adapter 'whole' holds whole tensors: m\.a\.bias"):
        lora.merge(tmp_path / "theirs.onnx", whole)


def test_codes_that_two_layers_share(tmp_path: Path) -> None:
    """An update of one of them would be one of both."""
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[B,128] x) => (float[B,128] y)
      { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }"""
    model = model_of(text, {"w": np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)})
    model.graph[0].name, model.graph[2].name = "/m/a/MatMul", "/m/b/MatMul"
    ir.save(model, tmp_path / "float.onnx")
    made = compile(tmp_path / "float.onnx", "int8-weight-only", prove=False).path
    with pytest.raises(DataError, match="several layers read the codes or scales"):
        lora.merge(made, write(tmp_path / "some", low_rank("m.a", 128, 128)))
    assert not (tmp_path / "float.int8-weight-only.some.onnx").exists()


def test_weights_whose_channels_were_scaled(tmp_path: Path) -> None:
    """W diag(s) + B A would be another function: such an artifact is refused, and so is a folded BatchNormalization."""
    head = '<ir_version: 10, opset_import: ["": 21]> g (float[B,128] x) => (float[B,64] y) '
    rng = np.random.default_rng(0)
    model = model_of(head + "{ y = MatMul (x, w) }", {"w": rng.standard_normal((128, 64)).astype(np.float32)})
    model.graph[0].name = "/m/a/MatMul"
    ir.save(model, tmp_path / "float.onnx")
    feeds = {"x": rng.standard_normal((64, 128)).astype(np.float32) * np.linspace(0.01, 100, 128, dtype=np.float32)}
    smooth = compile(tmp_path / "float.onnx", "int8-smoothquant", calibration=[feeds] * 4, prove=False)
    assert any("alpha" in notice for notice in smooth.report.notices), "or the test shows nothing"
    folder = write(tmp_path / "some", low_rank("m.a", 64, 128))
    with pytest.raises(
        DataError, match=r"1 of 1 layers that adapter 'some' changes .*: m\.a \(smooth-quant\)"
    ) as error:
        lora.merge(smooth.path, folder)
    assert "merge the adapter into the float model" in error.value.hint
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[B,4,8,8] x) => (float[B,6,8,8] y)
      { c = Conv <pads = [1, 1, 1, 1]> (x, w) y = BatchNormalization (c, s, b, m, v) }"""
    vectors = {name: np.linspace(0.5, 1.5, 6, dtype=np.float32) for name in "sbmv"}
    convolution = model_of(text, {"w": rng.standard_normal((6, 4, 3, 3)).astype(np.float32), **vectors})
    convolution.graph[0].name = "/m/a/Conv"
    ir.save(convolution, tmp_path / "conv.onnx")
    images = [{"x": rng.standard_normal((2, 4, 8, 8)).astype(np.float32)}]
    folded = compile(tmp_path / "conv.onnx", "int8-static", calibration=images, prove=False).path
    with pytest.raises(DataError, match=r"m\.a \(fold-batch-norm\)"):
        lora.merge(folded, write(tmp_path / "conv", _kernel("m.a")))


def _kernel(module: str) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"A": (2, 4, 3, 3), "B": (6, 2, 1, 1)}
    return {f"{module}.lora_{p}.weight": rng.standard_normal(shape).astype(np.float32) for p, shape in shapes.items()}
