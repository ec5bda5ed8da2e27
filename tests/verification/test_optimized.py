"""The graph that the runtime executes, and where its nodes come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.compiler.operators import linear_w8a8
from qcompile.compiler.verification.optimized import optimize
from tests.passes.harness import model_of

HALF = """<ir_version: 10, opset_import: ["": 21, "qcompile": 1]>
g (int8[4,16] x, float[1] s) => (float16[4,8] y, float16[4,8] z) {
    a = qcompile.LinearW8A8Fp16 (x, s, w, t)
    y = Mul (a, k)
    b = qcompile.LinearW8A8Fp16 (x, s, v, u)
    z = Mul (b, k)
}"""


def test_a_body_whose_result_the_casts_to_half_swallow_has_a_caller(tmp_path: Path) -> None:
    codes, scales = np.ones((8, 16), np.int8), np.ones(8, np.float32)
    given = {"w": codes, "v": codes * 2, "t": scales, "u": scales * 2, "k": np.full(8, 3, np.float16)}
    model = model_of(HALF, given)
    linear_w8a8(dtype=ir.DataType.FLOAT16).declare(model)
    for node, name in zip([n for n in model.graph if n.domain], ("first", "second"), strict=True):
        node.name = name
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    by_origin = optimize(path, "CPUExecutionProvider").by_origin()
    for name in ("first", "second"):
        assert "MatMulInteger" in [node.op_type for node in by_origin[name]]
