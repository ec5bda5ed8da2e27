"""Bound memory: read anew at each run, results apart from each other, every element type, several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from qcompile.runtime.binding import BoundExecution
from qcompile.runtime.ports import Port, onnx_number
from qcompile.runtime.session import Session
from qcompile.runtime.streams import Stream
from tests.frontends.models import WIDTH, linear, save

Array = np.ndarray[Any, Any]


class Counting:
    """An `onnxruntime.IOBinding` that notes which inputs are bound, and when their copies are waited for."""

    def __init__(self, session: Any, bound: list[str]) -> None:
        self._binding, self._bound = onnxruntime.IOBinding(session), bound

    def bind_input(self, name: str, *place: Any) -> None:
        self._bound.append(name)
        self._binding.bind_input(name, *place)

    def synchronize_inputs(self) -> None:
        self._bound.append("wait")
        self._binding.synchronize_inputs()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


@pytest.fixture
def opened() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(linear().SerializeToString(), providers=["CPUExecutionProvider"])


def bound(session: Any) -> BoundExecution:
    return BoundExecution(session, ("cpu", 0), Stream())


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def test_an_input_is_bound_again_only_when_it_has_changed(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(opened, "io_binding", lambda: Counting(opened, seen))
    execution, x = bound(opened), rows(3)
    for _ in range(3):
        x += 1
        np.testing.assert_array_equal(execution.run({"x": x})["y"], opened.run(None, {"x": x})[0])
    assert seen == ["x"]
    for other in (x[:2], rows(3, 1)):
        np.testing.assert_array_equal(execution.run({"x": other})["y"], opened.run(None, {"x": other})[0])
    assert seen == ["x", "x", "x"]


def test_a_run_does_not_write_over_the_results_of_another(opened: Any) -> None:
    execution, x = bound(opened), rows(3)
    first = execution.run({"x": x})["y"]
    kept = first.copy()
    x[:] = 7
    second = execution.run({"x": x})["y"]
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)


def test_inputs_are_not_kept(opened: Any) -> None:
    """A binding that held the memory of its inputs would keep one set of them for each thread."""
    torch = pytest.importorskip("torch")
    import weakref

    execution, x = bound(opened), torch.ones(3, WIDTH)
    execution.run({"x": x})
    watched = weakref.ref(x)
    del x
    assert watched() is None


def test_gaps_are_closed(opened: Any) -> None:
    wide = rows(WIDTH).T
    np.testing.assert_array_equal(bound(opened).run({"x": wide})["y"], opened.run(None, {"x": wide})[0])


def test_no_rows(opened: Any) -> None:
    assert bound(opened).run({"x": rows(0)})["y"].shape == (0, WIDTH)


def test_threads_do_not_disturb_each_other(opened: Any) -> None:
    execution = bound(opened)
    fed = [rows(1 + i % 3, i) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: execution.run({"x": x})["y"], fed))
    for x, y in zip(fed, found, strict=True):
        np.testing.assert_array_equal(y, opened.run(None, {"x": x})[0])


def cast(folder: Path, of: int, to: int) -> Session:
    graph = h.make_graph(
        [h.make_node("Cast", ["x"], ["y"], to=to)],
        "cast",
        [h.make_tensor_value_info("x", of, [None])],
        [h.make_tensor_value_info("y", to, [None])],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    return Session(save(model, folder / "cast.onnx"), ["cpu"])


VALUES = np.array([1.5, -2, 0.25], np.float32)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "bool", "int8"])
def test_element_types_in_and_out(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    number = onnx_number(name)
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    out, back = cast(tmp_path, T.FLOAT, number), cast(tmp_path, number, T.FLOAT)
    codes = out({"x": VALUES})["y"]
    assert codes.dtype == dtype
    np.testing.assert_array_equal(codes, VALUES.astype(dtype))
    np.testing.assert_array_equal(back({"x": codes})["y"], VALUES.astype(dtype).astype(np.float32))
    tensor = out({"x": torch.from_numpy(VALUES)})["y"]
    assert tensor.dtype == getattr(torch, name)
    assert torch.equal(back({"x": tensor})["y"], torch.from_numpy(VALUES.astype(dtype).astype(np.float32)))


def test_ort_values_in_and_out(tmp_path: Path) -> None:
    value = onnxruntime.OrtValue.ortvalue_from_numpy(VALUES)
    for session in (cast(tmp_path, T.FLOAT, T.BFLOAT16), cast(tmp_path, T.FLOAT, T.FLOAT16)):
        result = session({"x": value})["y"]
        assert isinstance(result, onnxruntime.OrtValue)
        assert result.shape() == [3]


def test_an_initializer_that_is_given_once(tmp_path: Path) -> None:
    model = linear()
    model.graph.input.append(h.make_tensor_value_info("b", T.FLOAT, [WIDTH]))
    opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    execution, x, b = bound(opened), rows(2), np.full(WIDTH, 9, np.float32)
    for feed in ({"x": x}, {"x": x, "b": b}, {"x": x}):
        np.testing.assert_array_equal(execution.run(feed)["y"], opened.run(None, feed)[0])


@pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 11, 16, 17, 19])
def test_the_table_of_types(number: int) -> None:
    """Names of types, by ONNX Runtime itself."""
    graph = h.make_graph(
        [h.make_node("Identity", ["x"], ["y"])],
        "g",
        [h.make_tensor_value_info("x", number, [None])],
        [h.make_tensor_value_info("y", number, [None])],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    port = Port.of(onnxruntime.InferenceSession(model.SerializeToString()).get_inputs()[0])
    assert onnx_number(port.dtype) == number
    assert port.dtype == str(onnx.helper.tensor_dtype_to_np_dtype(number))
