"""As a program, on a stub of CUDA: sessions that are asked for CUDA graphs. Prints what they say as JSON.

A replay does nothing there, so its answers are taken for right.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.runtime import graph_execution
from qcompile.runtime.session import Session
from tests.passes.llama import WIDTH, llama
from tests.runtime import shaped_models as models

_HEADER = '<ir_version: 10, opset_import: ["": 21]> model (float[batch, 4] x) => (float[batch, 4] y) '
REFUSED = {
    "control flow": _HEADER + "{ sum = ReduceSum <keepdims = 0> (x) flag = Cast <to = 9> (sum) "
    "y = If <then_branch = a () => (float[batch, 4] z) { z = Neg (x) }, "
    "else_branch = b () => (float[batch, 4] w) { w = Abs (x) }> (flag) }",
    "not on the device": _HEADER + "{ q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z) }",
    "gather": _HEADER + "{ at = Constant <value = int64[1, 1] {0}> () g = GatherND (x, at) y = Add (x, g) }",
}


def counted(name: str) -> int:
    return int(getattr(ctypes.CDLL("libcudart.so.13"), f"cuda_stub_{name}")())


def session(text: str, folder: str, graphs: Any = True) -> Session:
    path = Path(folder) / "model.onnx"
    path.write_bytes(models.model(text))
    return Session(path, ["cuda"], cuda_graphs=graphs)


def run(opened: Session, text: str, *lengths: int) -> list[int]:
    """Captures and launches after some runs."""
    for length in lengths:
        answer = opened(models.feed(text, 4, length))["y"]
        assert answer.shape == (4, length, 4)
    return [counted("captures"), counted("launches")]


def replayed(folder: str) -> dict[str, Any]:
    text = models.TOKEN_BY_TOKEN
    opened = session(text, folder, ({"batch": 4, "length": 8}, {"batch": 4, "length": 16}))
    found: dict[str, Any] = {
        "first": run(opened, text, 8),
        "trial": run(opened, text, 8),
        "third": run(opened, text, 8),
    }
    found["other bucket"] = run(opened, text, 16, 16)
    other = threading.Thread(target=lambda: found.update({"other thread": run(opened, text, 8, 8, 8)}))
    other.start()
    other.join()
    return found | {"said": opened.describe(), "data": [str(bucket) for bucket in opened.description.state.buckets]}


def decoder(folder: str) -> dict[str, Any]:
    """A decoder with free dimensions, whose shapes are computed on the CPU."""
    path = Path(folder) / "decoder.onnx"
    path.write_bytes(ir.to_proto(llama()).SerializeToString())
    opened = Session(path, ["cuda"], cuda_graphs=True)
    before = counted("captures"), counted("launches")
    for _ in range(5):
        opened({"x": np.ones((1, 16, WIDTH), np.float32)})
    return {
        "said": opened.describe(),
        "captures": counted("captures") - before[0],
        "launches": counted("launches") - before[1],
    }


if __name__ == "__main__":
    graph_execution.close = lambda found, right: True
    with tempfile.TemporaryDirectory() as folder:
        found = {"replayed": replayed(folder)}
        found["refused"] = {why: session(text, folder).describe() for why, text in REFUSED.items()}
        found["decoder"] = decoder(folder)
        found["plain"] = session(models.TOKEN_BY_TOKEN, folder, False).describe()
    print(json.dumps(found))
