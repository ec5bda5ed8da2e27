"""Proofs over weights as codes: what was asked for runs, each layer's noise is measured, and the report says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from qcompile.compiler.passes import import_passes
from qcompile.compiler.report import Report
from tests.passes.harness import model_of
from tests.passes.int8 import Array, head, normal

import_passes("qcompile.passes")

TEXT = (
    head(21) + "g (int64[N,S] ids) => (float[N,S,96] logits) { e = Gather (table, ids) "
    "n = LayerNormalization <axis = -1> (e, g, c) u = MatMul (n, w) s = Sigmoid (u) a = Mul (u, s) d = MatMul (a, v) "
    "b = Add (d, bias) r = Add (b, e) f = LayerNormalization <axis = -1> (r, g, c) logits = MatMul (f, h) }"
)
WEIGHTS = {
    "table": normal(96, 64), "w": normal(64, 128) / 8, "v": normal(128, 64) / 11, "h": normal(64, 96) / 8,
    "bias": normal(64), "g": np.ones(64, np.float32), "c": np.zeros(64, np.float32),
}  # fmt: skip
SAMPLES: list[dict[str, Array]] = [{"ids": np.arange(i, i + 12).reshape(1, 12)} for i in range(4)]


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "m.onnx"
    onnx.save(ir.to_proto(model_of(TEXT, WEIGHTS)), path)
    return path


def compiled(model: Path, tmp_path: Path, target: str = "cpu", **options: object) -> tuple[Path, Report]:
    wanted = [f"place-weights.{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = qcompile.compile(
        model, "int4-rtn", target=target, calibration=SAMPLES, output=tmp_path / "out.onnx",
        overrides=["place-weights.layers=[]", *wanted],
    )  # fmt: skip
    return tmp_path / "out.onnx", done.report


@pytest.mark.parametrize(
    ("format", "options", "kernels", "least"),
    [
        ("int4", {}, {"MatMulNBits", "GatherBlockQuantized"}, 15),
        ("uint4", {"symmetric": "false", "activations": "float"}, {"MatMulNBits", "GatherBlockQuantized"}, 15),
        ("int8", {"block_size": 32}, {"MatMulNBits", "GatherBlockQuantized"}, 35),
        ("nf4", {}, {"MatMul", "Gather"}, 15),
        ("mxfp4", {}, {"MatMul", "Gather"}, 10),
    ],
)
def test_what_was_asked_for_runs_and_every_layer_is_measured(
    float_model: Path, format: str, options: dict[str, object], kernels: set[str], least: float, tmp_path: Path
) -> None:
    _, report = compiled(float_model, tmp_path, format=format, **options)
    assert [p.name for p in report.proofs if p.passed is False] in ([], ["speed"])
    assert {u.kernel for u in report.units if u.kernel} == kernels
    assert len(report.units) == 4
    assert all(unit.proved for unit in report.units)
    assert all(layer.isolated_sqnr is not None and layer.isolated_sqnr > least for layer in report.layers)
    assert len(report.layers) == 4
    assert report.float_gains is not None
    assert report.float_gains.units == len(report.float_gains.gains) == 4
    restored = [u for u in report.units if "smaller on disk, not faster" in u.reason]
    assert len(restored) == (4 if format in ("nf4", "mxfp4") else 0)
    assert any("smaller on disk, not faster" in n for n in report.notices) == bool(restored)
