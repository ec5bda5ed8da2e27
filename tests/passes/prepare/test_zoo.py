"""The prepare passes on real pretrained models: the same answers, never more nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.graph import nodes
from tests.sweep.harness import PREPARE, compile_in_memory, session
from tests.zoo import MODELS

pytestmark = pytest.mark.models


@pytest.mark.parametrize("name", MODELS)
def test_real_models_keep_their_function(name: str) -> None:
    model = MODELS[name]()
    samples = model.calibration(2)
    proto = onnx.load(model.path())
    before = session(proto.SerializeToString(), optimized=False)
    compiled = compile_in_memory(proto, samples, PREPARE)
    after = session(compiled.data, optimized=True)
    assert not [n for n in compiled.context.notices if "float function" in n]
    for sample in samples:
        for expected, got in zip(before.run(None, dict(sample)), after.run(None, dict(sample)), strict=True):
            largest = max(float(np.abs(expected).max()), 1e-3)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 * largest)
    assert len(compiled.float_nodes) <= sum(1 for _ in nodes(ir.from_proto(proto)))


@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_has_constant_weights_and_no_scale_behind_it(name: str) -> None:
    model = MODELS[name]()
    prepared = compile_in_memory(onnx.load(model.path()), model.calibration(1), PREPARE).float_nodes
    kinds = {n.op_type for n in prepared.values()}
    assert not kinds & {"Constant", "BatchNormalization", "Dropout"}
    for node in prepared.values():
        if node.op_type == "Conv":
            assert node.inputs[1] is not None
            assert node.inputs[1].const_value is not None
