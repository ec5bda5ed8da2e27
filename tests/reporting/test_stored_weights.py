"""Weights as codes in a file: what inspect and diff say of each way of storing them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qcompile.compiler.diff import diff
from qcompile.compiler.diffing.tensors import TensorEvent
from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.inspection import inspect
from qcompile.compiler.passes import Pass
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Form
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.weight_params import bits_per_weight
from qcompile.passes.lower.lower_block_floats import LowerBlockFloats
from qcompile.passes.lower.lower_block_rows import LowerBlockRows
from qcompile.passes.lower.lower_blocks import LowerBlocks
from qcompile.passes.lower.lower_bnb4 import LowerBnb4
from qcompile.passes.lower.lower_qdq import LowerQdq
from qcompile.passes.lower.lower_weights import LowerWeights
from qcompile.passes.lower.outline import Outline
from tests.passes.harness import context, model_of
from tests.passes.int8 import head, normal
from tests.passes.lower.weight_only import placed

MATMUL = head(21) + "g (float[4,256] x) => (float[4,32] y) { y = MatMul (x, w) }"
GATHER = head(21) + "g (int64[3] x) => (float[3,256] y) { y = Gather (w, x) }"
FP16, FP32, DOUBLE = Scales.FLOAT16, Scales.FLOAT32, Scales.DOUBLE
CASES: list[tuple[Lowering, Pass, str, int, Scales | None, str]] = [
    (Lowering.BLOCKS, LowerBlocks(), "int4", 32, FP16, "int4 weights in blocks of 32"),
    (Lowering.BLOCKS, LowerBlocks(), "uint4", 64, FP16, "uint4 weights in blocks of 64"),
    (Lowering.BLOCKS, LowerBlocks(), "int2", 16, FP32, "int2 weights in blocks of 16"),
    (Lowering.BNB4, LowerBnb4(), "nf4", 16, DOUBLE, "nf4 weights in blocks of 16"),
    (Lowering.BLOCKED_DQ, LowerQdq(), "int4", 32, FP32, "int4 weights in blocks of 32"),
    (Lowering.OPERATOR, Outline(), "uint4", 32, FP16, "uint4 weights in blocks of 32"),
    (Lowering.BLOCK_FP8, LowerBlockFloats(), "fp8-e4m3", 128, FP32, "fp8-e4m3 weights in blocks of 128"),
    (Lowering.BLOCK_FP4, LowerBlockFloats(), "nvfp4", 16, None, "nvfp4 weights in blocks of 16"),
    (Lowering.EMULATED, LowerWeights(), "nf4", 32, DOUBLE, "nf4 weights in blocks of 32, float once loaded"),
    (Lowering.EMULATED, LowerWeights(), "mxfp4", 32, None, "fp4 weights in blocks of 32, float once loaded"),
    (Lowering.EMULATED, LowerWeights(), "int4", 32, FP16, "int4 weights in blocks of 32, float once loaded"),
    (Lowering.BLOCK_ROWS, LowerBlockRows(), "int4", 32, FP16, "int4 weights in blocks of 32"),
]


@pytest.mark.parametrize(("lowering", "lower", "name", "block", "scales", "words"), CASES, ids=str)
def test_format_block_and_bits(
    lowering: Lowering, lower: Pass, name: str, block: int, scales: Scales | None, words: str, tmp_path: Path
) -> None:
    rows = lowering is Lowering.BLOCK_ROWS
    model = model_of(GATHER if rows else MATMUL, {"w": normal(32, 256) if rows else normal(256, 32)})
    spec = QuantSpec(FORMATS[name], symmetric=not name.startswith("u"), scales=scales)
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    save(model, before)
    on = context(target_named("cuda" if lowering is Lowering.OPERATOR else "cpu"))
    steps = [*placed(spec, block, lowering, Form.WEIGHTS), lower, *([LowerQdq()] if lower.name != "lower-qdq" else [])]
    run_pipeline(steps, model, on)
    save(model, after)

    [coded] = inspect(after).coded
    [(_, weight)] = on.plan.weights.items()
    assert (coded.block, coded.layers, coded.elements) == (block, 1, 8192)
    assert coded.bits == pytest.approx(
        bits_per_weight(weight.params, weight.codes.shape), abs=0.13
    )  # a table of levels counts in a layer so small

    found = diff(before, after)
    [change] = [n for n in found.nodes if n.after and n.after[0].form != "float"]
    assert change.after[0].form == words
    [tensor] = [t for t in found.tensors if t.event is TensorEvent.QUANTIZED]
    assert (tensor.name, tensor.dtype_after) == ("w", words.split()[0])
    assert tensor.bytes_after == coded.bytes
    assert not [t for t in found.tensors if t.event is TensorEvent.REMOVED]
    assert len(found.tensors) == 1, "scales and zero points belong to the weight"


def save(model: object, path: Path) -> None:
    import onnx_ir as ir

    assert isinstance(model, ir.Model)
    onnx.save(ir.to_proto(model), path)
