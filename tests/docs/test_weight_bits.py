"""Bits a weight in the table of language models: what layers read, what the head reads, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.weight_bits import StoredBytes, stored_bytes
from tests.passes.harness import model_of

_TEXT = """<ir_version: 10, opset_import: ["": 21]> decoder (int64[B,S] ids) => (float[B,S,1100] logits) {
  row = Gather (table, ids) scaled = Mul (row, gamma) x = MatMul (scaled, w)
  head = DequantizeLinear <axis = 1> (codes, scales) raw = MatMul (x, head) logits = Identity (raw)
}"""


def test_constants_are_counted_where_they_are_read(tmp_path: Path) -> None:
    weights = {
        "table": np.zeros((1100, 64), np.float32),
        "gamma": np.zeros(64, np.float32),
        "w": np.zeros((64, 1024), np.float32),
        "codes": np.zeros((1024, 1100), np.int8),
        "scales": np.ones(1100, np.float32),
    }
    ir.save(model_of(_TEXT, weights), tmp_path / "m.onnx")
    expected = StoredBytes(layers=4 * 64 * 1024 + 4 * 64, head=1024 * 1100 + 4 * 1100)
    assert stored_bytes(tmp_path / "m.onnx") == expected
