"""What the layers of an engine compute on, from both notations in which NVIDIA's software tells it."""

from __future__ import annotations

import json

import pytest

from qcompile.errors import DataError
from qcompile.runtime.engine_layers import EngineLayer, from_json, from_log

CONVOLUTION = {
    "Name": "conv1.weight + conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x",
            "Location": "Device",
            "Dimensions": [16, 64, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {"Name": "y", "Dimensions": [16, 64, 28, 28], "Format/Datatype": "Channel major FP16 format"}
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 36864},
    "Bias": {"Type": "Float", "Count": 64},
    "AllowSparse": 1,
    "TacticName": "sm80_xmma_fprop_sparse_conv_interleaved_i8i8_i8i32_f32",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
}  # fmt: skip
REFORMAT = {
    "Name": "Reformatting CopyNode for Input Tensor 0",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "a", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP32"}],
    "Outputs": [{"Name": "b", "Dimensions": [1, 8], "Format/Datatype": "Half"}],
    "TacticName": "",
}
NEWER = {  # TensorRT 11: element type and layout apart, constants among themselves
    "Name": "m1_myl0_1",
    "LayerType": "gemm",
    "Inputs": [{"Name": "x", "Dimensions": [8, 128], "Datatype": "FP8", "Format": "(Linear) Row major linear format"}],
    "Constants": [{"Name": "w", "Dimensions": [128, 128], "Datatype": "FP8", "Format": "(Linear)"}],
    "Outputs": [{"Name": "y", "Dimensions": [8, 128], "Datatype": "BFloat16", "Format": "(Linear)"}],
    "TacticName": "sm89_xmma_gemm_e4m3",
    "Metadata": "[ONNX Layer: m1][ONNX Layer: list[0] of names]",
}

LOG = """Layers:
Name: __mye365_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: mm /a + b, c_myl0_1, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,128], Strides: [128,1], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [128,128], Strides: [128,1], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: alpha, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [-1,128], Strides: [128,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: mm /a + b, c][ONNX Layer: dq]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,128], Location: Device, IsShapeInferenceIO: false, ProfileInfo: [ ]
"""  # noqa: E501


def test_json_of_tensorrt_10() -> None:
    convolution, reformat = from_json(json.dumps({"Layers": [CONVOLUTION, REFORMAT], "Bindings": ["x", "y"]}))
    assert convolution.inputs == ("int8", "int8")
    assert convolution.outputs == ("float16",)
    assert convolution.codes == ("int8", "int8")
    assert convolution.nodes == ("conv1", "relu1")
    assert convolution.sparse
    assert (reformat.inputs, reformat.outputs) == (("float32",), ("float16",))
    assert not reformat.sparse
    assert reformat.nodes == ()


def test_json_of_tensorrt_11() -> None:
    [layer] = from_json(json.dumps({"Layers": [NEWER], "I/O Tensors": []}))
    assert layer == EngineLayer(
        name="m1_myl0_1",
        kind="gemm",
        inputs=("fp8", "fp8"),
        outputs=("bfloat16",),
        tactic="sm89_xmma_gemm_e4m3",
        nodes=("m1", "list[0] of names"),
    )


def test_lines_of_the_log() -> None:
    empty, product = from_log(LOG)
    assert (empty.kind, empty.inputs, empty.nodes) == ("shape_call", (), ())
    assert product.name == "mm /a + b, c_myl0_1"
    assert product.inputs == ("int8", "int8", "float32")
    assert product.outputs == ("float16",)
    assert product.nodes == ("mm /a + b, c", "dq")


def test_an_engine_that_tells_names_alone() -> None:
    with pytest.raises(DataError, match="names of its layers alone"):
        from_json('{"Layers": ["conv1 + relu1"], "Bindings": []}')


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [{"LayerType": "gemm"}]}'])
def test_what_is_no_layer_information(text: str) -> None:
    with pytest.raises(DataError, match="no layer information"):
        from_json(text)
    assert from_log(text) == []
