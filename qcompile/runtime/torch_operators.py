"""ONNX operators in torch: those of common vision models and transformers.

Each takes the node, its inputs (None where one is missing) and the opset, and returns its output, or a
tuple of them. Import this module only where torch is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

Inputs = Sequence[Any]
Operator = Callable[[ir.Node, Inputs, int], Any]

OPERATORS: dict[str, Operator] = {}
"""By operator type, prefixed with `domain::` outside the default domain."""


class Unsupported(Exception):
    """An option of an operator has no torch form here."""


def tensor_of(array: object) -> Tensor:
    """A tensor that owns its memory, of the type of `array` (Python floats are float32)."""
    given = np.array(array, order="C")
    if given.dtype == np.float64 and not isinstance(array, np.ndarray):
        given = given.astype(np.float32)
    return torch.from_numpy(given)


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def _elementwise(name: str, function: Callable[..., Any]) -> None:
    OPERATORS[name] = lambda node, inputs, opset: function(*inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Ceil": torch.ceil, "Cos": torch.cos,
    "Div": _divide, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "HardSwish": F.hardswish, "Identity": lambda x: x,
    "IsNaN": torch.isnan, "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "Mish": F.mish,
    "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sin": torch.sin, "Softplus": F.softplus, "Sqrt": torch.sqrt, "Sub": torch.sub, "Tanh": torch.tanh,
    "Where": torch.where, "MatMul": torch.matmul, "Dropout": lambda x, *_: x,
}  # fmt: skip
for _name, _function in _ELEMENTWISE.items():
    _elementwise(_name, _function)


@_operator("Pow")
def _pow(node: ir.Node, x: Inputs, opset: int) -> Any:
    return torch.pow(x[0], x[1]).to(x[0].dtype)


_VARIADIC: dict[str, Callable[..., Tensor]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}


@_operator(*_VARIADIC)
def _variadic(node: ir.Node, x: Inputs, opset: int) -> Any:
    combine = _VARIADIC[node.op_type]
    result: Tensor = x[0]
    for other in x[1:]:
        result = combine(result, other)
    return result


@_operator("Clip")
def _clip(node: ir.Node, x: Inputs, opset: int) -> Any:
    low, high = _given(x, 1), _given(x, 2)
    if opset < 11:
        low, high = (node.attributes[k].as_float() if k in node.attributes else None for k in ("min", "max"))
    return x[0] if low is None and high is None else torch.clamp(x[0], low, high)


@_operator("LeakyRelu", "Elu", "HardSigmoid", "PRelu", "Gelu")
def _activation(node: ir.Node, x: Inputs, opset: int) -> Any:
    match node.op_type:
        case "LeakyRelu":
            return F.leaky_relu(x[0], node.attributes.get_float("alpha", 0.01))
        case "Elu":
            return F.elu(x[0], node.attributes.get_float("alpha", 1.0))
        case "HardSigmoid":
            alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
            return torch.clamp(alpha * x[0] + beta, 0, 1)
        case "PRelu":
            return torch.where(x[0] < 0, x[0] * x[1], x[0])
    return F.gelu(x[0], approximate=node.attributes.get_string("approximate", "none"))


@_operator("Softmax", "LogSoftmax")
def _softmax(node: ir.Node, x: Inputs, opset: int) -> Any:
    axis = node.attributes.get_int("axis", -1 if opset >= 13 else 1)
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    if opset >= 13:
        return function(x[0], axis)
    return function(x[0].flatten(axis % x[0].ndim), -1).reshape(x[0].shape)


@_operator("Conv", "ConvTranspose")
def _conv(node: ir.Node, x: Inputs, opset: int) -> Any:
    data, weight, bias = x[0], x[1], _given(x, 2)
    dims, group = weight.ndim - 2, node.attributes.get_int("group", 1)
    strides, dilations = _ints(node, "strides", dims), _ints(node, "dilations", dims)
    function: Callable[..., Tensor]
    if node.op_type == "Conv":
        pads = _pads(node, data.shape[2:], weight.shape[2:], strides, dilations)
        function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        return function(_padded(data, pads), weight, bias, strides, 0, dilations, group)
    if "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise Unsupported("output_shape or auto_pad")
    pads, more = _ints(node, "pads", 2 * dims, 0), _ints(node, "output_padding", dims, 0)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    if any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        raise Unsupported("an output_padding as large as the stride")
    result = function(data, weight, bias, strides, 0, more, group, dilations)
    return _padded(result, [-p for p in pads])


@_operator("MaxPool", "AveragePool")
def _pool(node: ir.Node, x: Inputs, opset: int) -> Any:
    data, kernel = x[0], [int(k) for k in node.attributes["kernel_shape"].as_ints()]
    dims = len(kernel)
    strides, dilations = _ints(node, "strides", dims), _ints(node, "dilations", dims)
    if node.attributes.get_int("ceil_mode", 0) or len([v for v in node.outputs if v.name]) > 1:
        raise Unsupported("ceil_mode or indices")
    pads = _pads(node, data.shape[2:], kernel, strides, dilations)
    if node.op_type == "MaxPool":
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
        return function(_padded(data, pads, -math.inf), kernel, strides, 0, dilations)
    if any(d != 1 for d in dilations):
        raise Unsupported("dilations")
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    result: Tensor = average(_padded(data, pads), kernel, strides)
    if any(pads) and not node.attributes.get_int("count_include_pad", 0):
        result = result / average(_padded(torch.ones_like(data[:1, :1]), pads), kernel, strides)
    return result


@_operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: ir.Node, x: Inputs, opset: int) -> Any:
    axes = tuple(range(2, x[0].ndim))
    return x[0].mean(axes, keepdim=True) if node.op_type == "GlobalAveragePool" else x[0].amax(axes, keepdim=True)


@_operator("BatchNormalization")
def _batch_norm(node: ir.Node, x: Inputs, opset: int) -> Any:
    if node.attributes.get_int("training_mode", 0):
        raise Unsupported("training_mode")
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], eps=node.attributes.get_float("epsilon", 1e-5))


@_operator("LayerNormalization")
def _layer_norm(node: ir.Node, x: Inputs, opset: int) -> Any:
    axis = node.attributes.get_int("axis", -1) % x[0].ndim
    result = F.layer_norm(x[0], x[0].shape[axis:], eps=node.attributes.get_float("epsilon", 1e-5)) * x[1]
    return result if _given(x, 2) is None else result + x[2]


@_operator("InstanceNormalization")
def _instance_norm(node: ir.Node, x: Inputs, opset: int) -> Any:
    return F.instance_norm(x[0], weight=x[1], bias=x[2], eps=node.attributes.get_float("epsilon", 1e-5))


@_operator("Gemm")
def _gemm(node: ir.Node, x: Inputs, opset: int) -> Any:
    a = x[0].T if node.attributes.get_int("transA", 0) else x[0]
    b = x[1].T if node.attributes.get_int("transB", 0) else x[1]
    product = node.attributes.get_float("alpha", 1.0) * (a @ b)
    return product if _given(x, 2) is None else product + node.attributes.get_float("beta", 1.0) * x[2]


@_operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def _reduce(node: ir.Node, x: Inputs, opset: int) -> Any:
    axes = [int(a) for a in x[1]] if _given(x, 1) is not None else list(node.attributes.get_ints("axes", ()) or ())
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return x[0]
    over, keep = tuple(axes or range(x[0].ndim)), bool(node.attributes.get_int("keepdims", 1))
    match node.op_type:
        case "ReduceMean":
            return x[0].mean(over, keepdim=keep)
        case "ReduceSum":
            return x[0].sum(over, keepdim=keep)
        case "ReduceMax":
            return x[0].amax(over, keepdim=keep)
        case "ReduceMin":
            return x[0].amin(over, keepdim=keep)
    return torch.linalg.vector_norm(x[0], dim=over, keepdim=keep)


@_operator("Reshape", "Expand", "Tile")
def _shaped(node: ir.Node, x: Inputs, opset: int) -> Any:
    target = tuple(int(d) for d in x[1])
    if node.op_type == "Expand":
        return x[0].expand(np.broadcast_shapes(tuple(x[0].shape), target))
    if node.op_type == "Tile":
        return x[0].tile(target)
    kept = not node.attributes.get_int("allowzero", 0)
    return x[0].reshape([x[0].shape[i] if d == 0 and kept else d for i, d in enumerate(target)])


@_operator("Flatten")
def _flatten(node: ir.Node, x: Inputs, opset: int) -> Any:
    axis = node.attributes.get_int("axis", 1)
    return x[0].reshape(math.prod(x[0].shape[:axis]), -1)


@_operator("Transpose")
def _transpose(node: ir.Node, x: Inputs, opset: int) -> Any:
    return x[0].permute(tuple(node.attributes.get_ints("perm", range(x[0].ndim)[::-1]) or ()))


@_operator("Concat")
def _concat(node: ir.Node, x: Inputs, opset: int) -> Any:
    return torch.cat(list(x), node.attributes["axis"].as_int())


@_operator("Split")
def _split(node: ir.Node, x: Inputs, opset: int) -> Any:
    axis = node.attributes.get_int("axis", 0)
    sizes = [int(s) for s in x[1]] if _given(x, 1) is not None else list(node.attributes.get_ints("split", ()) or ())
    return torch.split(x[0], sizes or -(-x[0].shape[axis] // len(node.outputs)), axis)


@_operator("Squeeze", "Unsqueeze")
def _squeeze(node: ir.Node, x: Inputs, opset: int) -> Any:
    axes = [int(a) for a in x[1]] if _given(x, 1) is not None else list(node.attributes.get_ints("axes", ()) or ())
    if node.op_type == "Squeeze":
        return x[0].squeeze(tuple(axes) or tuple(i for i, d in enumerate(x[0].shape) if d == 1))
    result: Tensor = x[0]
    for axis in sorted(a % (x[0].ndim + len(axes)) for a in axes):
        result = result.unsqueeze(axis)
    return result


@_operator("Slice")
def _slice(node: ir.Node, x: Inputs, opset: int) -> Any:
    if opset < 10:
        raise Unsupported("opset below 10")
    starts, ends = [int(v) for v in x[1]], [int(v) for v in x[2]]
    axes = [int(v) for v in x[3]] if _given(x, 3) is not None else list(range(len(starts)))
    steps = [int(v) for v in x[4]] if _given(x, 4) is not None else [1] * len(starts)
    result: Tensor = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = result.shape[axis]
        if step > 0:
            at = torch.arange(*slice(start, end, step).indices(size), device=result.device)
        else:
            low = None if end < -size else end
            at = torch.arange(*slice(start, low, step).indices(size), device=result.device)
        result = result.index_select(axis, at)
    return result


@_operator("Gather")
def _gather(node: ir.Node, x: Inputs, opset: int) -> Any:
    axis = node.attributes.get_int("axis", 0) % x[0].ndim
    at = torch.where(x[1] < 0, x[1] + x[0].shape[axis], x[1]).long()
    shape = (*x[0].shape[:axis], *at.shape, *x[0].shape[axis + 1 :])
    return x[0].index_select(axis, at.reshape(-1)).reshape(shape)


@_operator("Shape")
def _shape(node: ir.Node, x: Inputs, opset: int) -> Any:
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return torch.tensor(x[0].shape[start:end], dtype=torch.int64)


@_operator("ConstantOfShape")
def _constant_of_shape(node: ir.Node, x: Inputs, opset: int) -> Any:
    value = tensor_of(node.attributes["value"].as_tensor().numpy()) if "value" in node.attributes else torch.zeros(1)
    return value.expand([int(d) for d in x[0]]).clone()


@_operator("Range")
def _range(node: ir.Node, x: Inputs, opset: int) -> Any:
    return torch.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype)


@_operator("Cast")
def _cast(node: ir.Node, x: Inputs, opset: int) -> Any:
    return x[0].to(tensor_of(np.zeros(0, ir.DataType(node.attributes["to"].as_int()).numpy())).dtype)


@_operator("Pad")
def _pad(node: ir.Node, x: Inputs, opset: int) -> Any:
    mode = node.attributes.get_string("mode", "constant")
    if mode == "wrap" or opset < 11:
        raise Unsupported(f"mode {mode} of opset {opset}")
    given, data = [int(p) for p in x[1]], x[0]
    axes = [int(a) % data.ndim for a in x[3]] if _given(x, 3) is not None else list(range(data.ndim))
    before, after = [0] * data.ndim, [0] * data.ndim
    for i, axis in enumerate(axes):
        before[axis], after[axis] = given[i], given[i + len(axes)]
    pairs = [p for axis in reversed(range(data.ndim)) for p in (before[axis], after[axis])]
    if mode == "constant":
        return F.pad(data, pairs, value=float(x[2]) if _given(x, 2) is not None else 0.0)
    while pairs and not any(pairs[-2:]):
        del pairs[-2:]
    return F.pad(data, pairs, mode={"edge": "replicate", "reflect": "reflect"}[mode])


@_operator("Resize")
def _resize(node: ir.Node, x: Inputs, opset: int) -> Any:
    data, get = x[0], node.attributes.get_string
    sizes = [int(s) for s in x[3]] if _given(x, 3) is not None and x[3].numel() else None
    if sizes is None:
        sizes = [math.floor(d * float(s)) for d, s in zip(data.shape, x[2], strict=True)]
    if sizes[:2] != list(data.shape[:2]) or "axes" in node.attributes:
        raise Unsupported("resizing of another axis than the last ones")
    mode, how = get("mode", "nearest"), get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest" and how == "asymmetric" and get("nearest_mode", "round_prefer_floor") == "floor":
        return F.interpolate(data, sizes[2:], mode="nearest")
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[data.ndim]
        return F.interpolate(data, sizes[2:], mode=kind, align_corners=how == "align_corners")
    raise Unsupported(f"mode {mode} with coordinates {how}")


def _given(x: Inputs, position: int) -> Any:
    return x[position] if len(x) > position else None


def _ints(node: ir.Node, name: str, count: int, default: int = 1) -> list[int]:
    return list(node.attributes.get_ints(name, ()) or [default] * count)


def _pads(
    node: ir.Node, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Pads before all axes, then behind them."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return _ints(node, "pads", 2 * len(kernel), 0) if auto == "NOTSET" else [0] * 2 * len(kernel)
    total = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return less + more if auto == "SAME_UPPER" else more + less


def _padded(data: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """`data` with its last axes padded (cut, where a pad is negative)."""
    dims = len(pads) // 2
    pairs = [p for axis in reversed(range(dims)) for p in (pads[axis], pads[axis + dims])]
    return F.pad(data, pairs, value=value) if any(pairs) else data
