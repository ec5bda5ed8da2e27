"""As a program, on a stub of CUDA: sessions fed from the device's memory. Prints what was seen, as JSON.

The stub's copies copy, its kernels do nothing: models here only hand their inputs on.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as T
from onnx import helper as h

from qcompile.errors import QCompileError
from qcompile.runtime.language_model import LanguageModel
from qcompile.runtime.session import Session
from qcompile.runtime.taps import Probe
from tests.frontends.models import linear, save
from tests.runtime.test_binding import Counting


def through() -> onnx.ModelProto:
    """Outputs of the inputs' values: x [n, 4] float32 -> y, ids [n] int64 -> same."""
    ports = [("x", T.FLOAT, ["n", 4]), ("ids", T.INT64, ["n"]), ("y", T.FLOAT, ["n", 4]), ("same", T.INT64, ["n"])]
    values = [h.make_tensor_value_info(*port) for port in ports]
    nodes = [h.make_node("Identity", ["x"], ["y"]), h.make_node("Identity", ["ids"], ["same"])]
    graph = h.make_graph(nodes, "through", values[:2], values[2:])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def on_device(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)


def same(given: dict[str, Any], found: dict[str, Any]) -> bool:
    return all(
        np.array_equal(arrays.numpy(), (fed.numpy() if hasattr(fed, "numpy") else fed))
        for arrays, fed in ((found["y"], given["x"]), (found["same"], given["ids"]))
    )


def feed(count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "x": on_device(random.standard_normal((count, 4)).astype(np.float32)),
        "ids": on_device(random.integers(0, 100, count)),
    }


def of_device(session: Session) -> dict[str, Any]:
    """Where results lie, and that they are those of this run."""
    first = session(feed(3))
    second = session(feed(3, 1))
    return {
        "devices": sorted({value.device_name() for value in first.values()}),
        "right": [same(feed(3), first), same(feed(3, 1), second)],
        "apart": first["y"].data_ptr() != second["y"].data_ptr(),
    }


def of_both(session: Session) -> list[bool]:
    """Inputs of both places: what lies on the host is read anew, at the same address."""
    given, right = feed(3), []
    given["ids"] = np.arange(3)
    for _ in range(2):
        given["ids"] += 1
        right.append(same(given, session(given)))
    return right


def bound_inputs(path: Path) -> list[str]:
    """What is bound in three runs and a fourth: the third has another x, the last has ids of the host."""
    seen: list[str] = []
    session, given = Session(path, ["cuda"]), feed(3)
    with mock.patch.object(onnxruntime.InferenceSession, "io_binding", lambda opened: Counting(opened, seen)):
        session(given)
        session(given)
        session(given | {"x": feed(3, 1)["x"]})
        session(given | {"ids": np.arange(3)})
    return seen


def of_threads(session: Session) -> bool:
    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(lambda seed: same(feed(1 + seed % 5, seed), session(feed(1 + seed % 5, seed))), range(200)))


def decoder() -> onnx.ModelProto:
    """A decoder that keeps its cache as it is, in 8-bit floats, and answers with what its memory holds."""
    cache = ["batch", 2, "total", 4]
    inputs = [("input_ids", T.INT64, ["batch", "length"]), ("past_key_values.0.key", T.FLOAT8E4M3FN, cache)]
    outputs = [("logits", T.FLOAT, ["batch", "length", 1]), ("present.0.key", T.FLOAT8E4M3FN, cache)]
    nodes = [
        h.make_node("Unsqueeze", ["input_ids", "axes"], ["ids"]),
        h.make_node("Cast", ["ids"], ["logits"], to=T.FLOAT),
        h.make_node("Identity", ["past_key_values.0.key"], ["present.0.key"]),
    ]
    graph = h.make_graph(
        nodes,
        "decoder",
        [h.make_tensor_value_info(*port) for port in inputs],
        [h.make_tensor_value_info(*port) for port in outputs],
        [onnx.numpy_helper.from_array(np.array([2]), "axes")],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def of_a_decoder(path: Path) -> list[list[str]]:
    """Where logits and cache lie after each step."""
    model = LanguageModel(Session(path, ["cuda"]))
    steps = model.read(np.arange(4), 2)
    return [[type(logits).__name__, *(cache[name].device_name() for name in cache)] for logits, cache in steps]


def of_a_probe(folder: str) -> dict[str, Any]:
    """An inner value, and the providers of the session; a large weight lies in a file."""
    ports = [h.make_tensor_value_info(name, T.FLOAT, [300, 64]) for name in ("x", "y")]
    weight = onnx.numpy_helper.from_array(np.ones((300, 64), np.float32), "w")
    nodes = [h.make_node("Identity", ["x"], ["inner"]), h.make_node("Add", ["inner", "w"], ["y"])]
    graph = h.make_graph(nodes, "inside", ports[:1], ports[1:], [weight])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, Path(folder) / "inside.onnx", save_as_external_data=True, location="inside.data")
    probe = Probe(
        onnx.load(Path(folder) / "inside.onnx", load_external_data=False),
        ["inner", "y"],
        Path(folder),
        None,
        None,
        "CUDAExecutionProvider",
    )
    x = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    found = probe({"x": x})
    return {"right": np.array_equal(found["inner"], x), "providers": probe._session.get_providers()}


class OnAnother:
    """An array on a GPU that the session does not run on."""

    dtype, shape = np.dtype(np.float32), (3, 4)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1


def error(action: Any) -> str:
    try:
        action()
    except QCompileError as found:
        return str(found)
    return ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path, other = save(through(), Path(folder) / "through.onnx"), save(linear(), Path(folder) / "linear.onnx")
        session = Session(path, ["cuda"])
        host = session({"x": np.ones((2, 4), np.float32), "ids": np.arange(2)})
        seen = {
            "device": of_device(session),
            "both": of_both(session),
            "host": [isinstance(value, np.ndarray) for value in host.values()],
            "bound": bound_inputs(path),
            "threads": of_threads(session),
            "stream": of_device(Session(path, ["cuda"], stream=4096)),
            "described": session.describe(),
            "limit": Session(path, ["cuda"], memory_limit=1 << 20).describe(),
            "too small": error(lambda: Session(other, ["cuda"], memory_limit=16)),
            "too small for a run": error(lambda: Session(path, ["cuda"], memory_limit=4096)(feed(4096))),
            "decoder": of_a_decoder(save(decoder(), Path(folder) / "decoder.onnx")),
            "probe": of_a_probe(folder),
            "missing": error(lambda: Session(path, ["cuda"], device=3)),
            "another": error(lambda: session(feed(3) | {"x": OnAnother()})),
        }
    print(json.dumps(seen))
