"""An embedding and two linear layers, compiled for CUDA without one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.targets import target_named
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal

TARGET = target_named("cuda")
SAMPLES = [{"ids": np.array([3, 1, 4], np.int64)}]
MODEL = ir.to_proto(
    model_of(
        head() + "g (int64[N] ids) => (float[N,8] y) "
        "{ e = Gather (table, ids) m = MatMul (e, w) a = Add (m, b) y = Gemm <transB = 1> (a, v, c) }",
        {"table": normal(9, 40), "w": normal(40, 64), "b": normal(64), "v": normal(8, 64), "c": normal(8)},
    )
)
