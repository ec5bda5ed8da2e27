"""Every function body against numpy, as ONNX Runtime inlines and optimizes it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.operators import Operator, catalogue
from qcompile.errors import ModelError
from tests.operators.operands import CONSTANTS, attributes_of, operands
from tests.operators.reference import expected
from tests.operators.running import Array, model_of, run, session

OPERATORS = catalogue()
ONE_OF_EACH = [
    "QuantizeRowsE4M3Fp16", "AddLayerNormQuantBf16", "AddRMSNormQuantE4M3", "LinearW8A8BiasGeluRequant",
    "LinearE4M3BiasSiluFp16", "LinearW4A16ZeroBiasFp16", "LinearW4A16", "Linear24BiasReluBf16",
    "Linear24W8A8SiluFp16", "LinearOutliersW8A8BiasRelu",
]  # fmt: skip


def check(
    operator: Operator,
    values: dict[str, Array],
    *,
    opset: int = 21,
    given: frozenset[str] = CONSTANTS,
    block: int = 32,
    level: onnxruntime.GraphOptimizationLevel | None = None,
) -> None:
    """Run `operator` on `values`, those in `given` as initializers, and compare every output with numpy."""
    attributes = attributes_of(operator, block)
    constants = {name: v for name, v in values.items() if name in given}
    feeds = {name: v for name, v in values.items() if name not in given}
    shapes = {name: v.shape if name in CONSTANTS else symbolic(v.shape) for name, v in feeds.items()}
    model = model_of(operator, shapes, opset=opset, constants=constants, attributes=attributes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if level is not None:
        options.graph_optimization_level = level
    got = run(session(model, options), feeds)
    for name, result in expected(operator, values, attributes).items():
        result.check(got[name], f"{operator.name}: {name}")


def symbolic(shape: tuple[int, ...]) -> list[int | str]:
    """The shape of activations with leading dimensions that are known when the model runs."""
    return [*(f"d{axis}" for axis in range(len(shape) - 1)), *shape[-1:]]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name: str) -> None:
    operator = OPERATORS[name]
    check(operator, operands(operator, (2, 3), 16, 64))
    check(operator, operands(operator, (5,), 8, 96, static=True))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 0, 3), (1, 1, 7)], ids=str)
def test_any_leading_dimensions_and_no_rows(name: str, leading: tuple[int, ...]) -> None:
    check(OPERATORS[name], operands(OPERATORS[name], leading, 8, 64))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("opset", [13, 17, 19, 21, 22, 23, 24, 25])
def test_every_opset_the_body_can_be_written_in(name: str, opset: int) -> None:
    operator = OPERATORS[name]
    if opset < operator.lowest_opset:
        with pytest.raises(ModelError, match=f"needs opset {operator.lowest_opset}"):
            operator.function(opset)
    else:
        check(operator, operands(operator, (3,), 8, 32), opset=opset)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_every_optimization_level(name: str, level: str) -> None:
    """Also where the activations are large: arithmetic that quantizes them on the way would show."""
    operator = OPERATORS[name]
    values = operands(operator, (4,), 16, 128)
    if "x" in values:
        values["x"] = (values["x"].astype(np.float32) * np.logspace(-2, 3, 128)).astype(values["x"].dtype)
    check(operator, values, level=getattr(onnxruntime.GraphOptimizationLevel, level))


@pytest.mark.parametrize("name", [n for n in ONE_OF_EACH if "W4A16" not in n])
def test_weights_and_scales_may_be_computed_at_run_time(name: str) -> None:
    check(OPERATORS[name], operands(OPERATORS[name], (4,), 16, 64), given=frozenset())


@given(
    name=st.sampled_from(sorted(OPERATORS)),
    leading=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(1, 12),
    k=st.integers(1, 5),
    block=st.sampled_from([32, 64, 128]),
    static=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_any_shape(name: str, leading: list[int], n: int, k: int, block: int, static: bool, seed: int) -> None:
    operator = OPERATORS[name]
    unit = block if "W4A16" in name else 4 if "24" in name else 1
    values = operands(operator, tuple(leading), n, k * unit, block=block, static=static, seed=seed)
    check(operator, values, block=block)


@pytest.mark.parametrize(
    "name", ["Linear24BiasReluFp16", "LinearE4M3BiasGelu", "LinearW4A16", "LinearE4M3Silu", "RMSNormQuantE4M3"]
)
def test_nan_fills_its_row_and_no_other(name: str) -> None:
    operator = OPERATORS[name]
    values = operands(operator, (5,), 8, 64)
    x = values["x" if "x" in values else "x_q"]
    x[1, 3] = np.nan
    check(operator, values)


def test_an_exact_product_of_the_largest_codes() -> None:
    """Beyond 2^24, where float32 sums would round: K * 127 * 127."""
    operator, k = OPERATORS["LinearW8A8"], 4096
    values = operands(operator, (2,), 8, k)
    values["x_q"] = np.full((2, k), 127, np.int8)
    values["w"] = np.full((8, k), -127, np.int8)
    check(operator, values)


def test_optional_outputs_are_left_out() -> None:
    operator = OPERATORS["AddLayerNormQuant"]
    values = operands(operator, (3,), 8, 16)
    results = expected(operator, values, attributes_of(operator))
    for wanted in ([], ["y"], ["sum"], ["y", "sum"]):
        shapes = {name: v.shape for name, v in values.items()}
        model = model_of(operator, shapes, attributes=attributes_of(operator), wanted=wanted)
        got = run(session(model), values)
        assert set(got) == {"x_q", "x_scale", *wanted}
        for name, array in got.items():
            results[name].check(array, name)


def test_a_node_knows_types_and_shapes() -> None:
    operator = OPERATORS["LinearW8A8BiasFp16"]
    batch = ir.SymbolicDim("batch")
    shapes = [[batch, 7, 32], [batch, 7, 1], [16, 32], [16], [16]]
    inputs = [ir.val(o.name, o.dtype, s) for o, s in zip(operator.inputs, shapes, strict=True)]
    (y,) = operator.node(inputs, name="layer").outputs
    assert (y.name, y.dtype, y.shape) == ("layer.y", ir.DataType.FLOAT16, ir.Shape([batch, 7, 16]))
    for of_n in inputs[2:]:
        of_n.shape = None
    assert operator.node(inputs, name="layer").outputs[0].shape is None


def test_a_model_holds_each_body_once() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    for _ in range(2):
        OPERATORS["LinearW8A8"].declare(model)
    assert list(model.functions) == [("qcompile", "LinearW8A8", "")]
    assert model.graph.opset_imports == {"": 21, "qcompile": 1}


def test_names_say_everything_and_differ() -> None:
    """A custom operator cannot infer its types, so two operators with different types need different names."""
    assert all(name == operator.name for name, operator in OPERATORS.items())
    assert len(OPERATORS) == 194
    assert {"LinearW8A8", "LinearE4M3BiasGeluBf16", "Linear24W8A8BiasReluRequant", "AddRMSNormQuantE4M3Fp16"} <= {
        *OPERATORS
    }
