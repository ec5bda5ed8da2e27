"""Sessions on a GPU: torch tensors in and out, in the order of streams, from several threads, within a limit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.errors import DataError, ModelError
from qcompile.runtime.device_memory import used_and_total
from qcompile.runtime.session import Session
from tests.frontends.models import linear, save
from tests.gpu.machine import why_not_on_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not_on_gpu()), reason=why_not_on_gpu())]

WIDTH = 1024


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(linear(width=WIDTH), tmp_path_factory.mktemp("session") / "m.onnx")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def rows(torch: Any, count: int, seed: int = 0) -> Any:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).cuda()


def right(path: Path, x: Any) -> np.ndarray[Any, Any]:
    """As the CPU answers."""
    found: np.ndarray[Any, Any] = Session(path, ["cpu"])({"x": x.cpu().numpy()})["y"]
    return found


def check(found: Any, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=2e-2, atol=2e-1)  # TF32


def test_results_lie_where_the_inputs_lie(torch: Any, path: Path) -> None:
    session, x = Session(path, ["cuda"]), rows(torch, 8)
    y = session({"x": x})["y"]
    assert y.device == x.device
    check(y, right(path, x))
    on_host = session({"x": x.cpu()})["y"]
    assert on_host.device.type == "cpu"
    check(on_host, right(path, x))
    assert isinstance(session({"x": x.cpu().numpy()})["y"], np.ndarray)
    check(session({"x": rows(torch, WIDTH).T})["y"], right(path, rows(torch, WIDTH).T))


@pytest.fixture(params=["none", "session's", "current"])
def streams(request: pytest.FixtureRequest, torch: Any) -> Iterator[Any]:
    """The session's stream, while torch computes on a stream of its own."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield {"none": None, "session's": torch.cuda.Stream(), "current": stream}[request.param]


def test_inputs_and_results_are_complete(torch: Any, path: Path, streams: Any) -> None:
    """Slow work before the run makes the input, and the next input takes the memory of the one before."""
    session, base = Session(path, ["cuda"], stream=streams), rows(torch, 64)
    sums, expected = [], []
    for step in range(20):
        torch.cuda._sleep(2_000_000)
        x = base + step
        y = session({"x": x})["y"]
        del x
        sums.append(y.sum(1))
        del y
    for step in range(20):
        expected.append(right(path, base + step).sum(1))
    np.testing.assert_allclose(torch.stack(sums).cpu().numpy(), np.stack(expected), rtol=1e-2, atol=1)


def test_with_a_stream_the_host_waits_for_nothing(torch: Any, path: Path) -> None:
    session, x = Session(path, ["cuda"], stream=torch.cuda.Stream()), rows(torch, 8)
    session({"x": x})
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    session({"x": x})
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_float8_in_and_out(torch: Any, tmp_path: Path) -> None:
    from onnx import TensorProto as T
    from onnx import helper as h

    ports = [h.make_tensor_value_info(name, T.FLOAT8E4M3FN, [None]) for name in ("x", "y")]
    graph = h.make_graph([h.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    x = torch.tensor([1.5, -2.0, 448.0], device="cuda").to(torch.float8_e4m3fn)
    y = Session(save(model, tmp_path / "m.onnx"), ["cuda"])({"x": x})["y"]
    assert (y.dtype, y.device) == (x.dtype, x.device)
    assert torch.equal(y.float(), x.float())


def test_eight_threads(torch: Any, path: Path) -> None:
    session = Session(path, ["cuda"])
    fed = [rows(torch, 1 + seed % 7, seed) for seed in range(8)]
    expected = [right(path, x) for x in fed]

    def ask(turn: int) -> None:
        check(session({"x": fed[turn % 8]})["y"], expected[turn % 8])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))


def test_memory_does_not_grow(torch: Any, path: Path) -> None:
    session = Session(path, ["cuda"])
    held = []
    for turn in range(300):
        session({"x": rows(torch, 1 + turn % 50, turn)})
        used = used_and_total(0)
        assert used is not None
        held.append(used[0])
    assert held[-1] - held[100] < 64 << 20


def test_a_limit_of_memory(torch: Any, path: Path) -> None:
    with pytest.raises(ModelError, match="memory_limit=1048576 bytes are too few to open the model"):
        Session(path, ["cuda"], memory_limit=1 << 20)
    session = Session(path, ["cuda"], memory_limit=32 << 20)
    check(session({"x": rows(torch, 8)})["y"], right(path, rows(torch, 8)))
    with pytest.raises(DataError, match="memory_limit=33554432 bytes are too few for this run"):
        session({"x": rows(torch, 1 << 16)})
