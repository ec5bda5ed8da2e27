"""One bucket on the device: memory at fixed addresses, and the CUDA graph that reads and writes it.

What ONNX Runtime 1.31 does, and so what is possible here:

- A session is opened to capture (`enable_cuda_graph`), which it refuses when a node other than the arithmetic of shapes
  is not on CUDA, or when there is control flow.
- The run option `gpu_graph_id` names a graph, -1 stands for a run without one. The first run of a number runs twice to
  warm up, captures, and replays; the next ones replay. A graph belongs to the thread that captured it, and lives as
  long as the session: none can be dropped.
- Nothing is checked in a replay: inputs are read, and outputs written, where they lay when the graph was captured.
- While a stream is captured no other thread may allocate or wait on the device: either side fails with CUDA error 900.
- A kernel that copies from memory of the host is captured with the address. Up to 1.30 the buffers of Concat, Split,
  ScatterND and batched MatMul were given back after the capture, and replays read what others had put there
  (github.com/microsoft/onnxruntime/pull/32121). GatherND copies from its own stack to this day: `refusal`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from qcompile.runtime import arrays
from qcompile.runtime.arrays import Array
from qcompile.runtime.buckets import Shape
from qcompile.runtime.padding import padded
from qcompile.runtime.ports import Port, onnx_number
from qcompile.runtime.providers import CUDA
from qcompile.runtime.streams import wait_for

OPTION = {"enable_cuda_graph": "1"}
"""Provider option of a session that can capture."""

_GRAPH, _NONE = "gpu_graph_id", -1
_SINCE = (1, 31)
_COPIES_FROM_THE_STACK = frozenset({"GatherND"})


def refusal(session: Any) -> str:
    """Why a session that was opened to capture had better not; empty where it may.

    Args:
        session: opened with `session.record_ep_graph_assignment_info`.
    """
    import onnxruntime

    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _SINCE:
        return f"ONNX Runtime {version} replays copies from memory that it has given back, which 1.31 does not"
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == CUDA]
    unsafe = sorted({node.op_type for part in parts for node in part.get_nodes()} & _COPIES_FROM_THE_STACK)
    return f"{', '.join(unsafe)} copies from memory that is gone when the graph is replayed" if unsafe else ""


def run_options(graph: int = _NONE) -> Any:
    """Options of a run without a graph, or of one that captures or replays the graph of a number."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH, str(graph))
    return options


class Uncaptured:
    """A session that was opened to capture, and runs without."""

    def __init__(self, session: Any) -> None:
        self._session, self._options = session, run_options()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Any, feed: Mapping[str, Any]) -> Any:
        return self._session.run(outputs, feed, self._options)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        if options is not None:
            options.add_run_config_entry(_GRAPH, str(_NONE))
        self._session.run_with_iobinding(binding, options or self._options)


class Captured:
    """The memory of one bucket, bound to a graph of its own.

    Args:
        session: opened to capture.
        number: of the graph, from 0.
        shapes: of the inputs.
        memory: "cuda", or "cpu" for a session that pretends.
        device: number of the GPU.

    Attributes:
        inputs, outputs: OrtValues by name; outputs are there after `warm_up`.
    """

    def __init__(self, session: Any, number: int, shapes: Mapping[str, Shape], memory: str, device: int) -> None:
        import onnxruntime

        self._session = session
        self._graph, self._plain = run_options(number), run_options()
        self._types = {p.name: p.dtype for p in map(Port.of, (*session.get_inputs(), *session.get_outputs()))}
        self.inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, onnx_number(self._types[name]), memory, device
            )
            for name, shape in shapes.items()
        }
        self.outputs: dict[str, Any] = {}
        self._binding = session.io_binding()
        for name, value in self.inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, memory, device)

    def warm_up(self) -> None:
        """Run without a graph, and keep the memory that the outputs were given."""
        self.run_plainly()
        names = [output.name for output in self._session.get_outputs()]
        self.outputs = dict(zip(names, self._binding.get_outputs(), strict=True))
        for name, value in self.outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    @property
    def bytes(self) -> int:
        """Of inputs and outputs."""
        return sum(value.tensor_size_in_bytes() for value in (*self.inputs.values(), *self.outputs.values()))

    def write(self, feed: Mapping[str, Array]) -> None:
        """Copy inputs in, zeros behind them; done when it returns."""
        for name, value in feed.items():
            buffer = self.inputs[name]
            if not arrays.on_device(value):
                buffer.update_inplace(padded(arrays.to_numpy(value), tuple(buffer.shape())))
                continue
            view, shape = arrays.from_ort(buffer, type(value), self._types[name]), arrays.shape_of(value)
            if tuple(buffer.shape()) != shape:
                view[...] = 0
            view[tuple(slice(size) for size in shape)] = value
        self._wait(feed)

    def run_plainly(self) -> None:
        self._session.run_with_iobinding(self._binding, self._plain)

    def replay(self) -> None:
        """Replay the graph; capture it where this thread has not."""
        self._session.run_with_iobinding(self._binding, self._graph)

    def read(self, feed: Mapping[str, Array], cuts: Collection[tuple[str, int, int]] = ()) -> dict[str, Array]:
        """Copies of the outputs, as the kind of array that was fed; done when it returns.

        Args:
            cuts: (output, axis, size) that the answer has.
        """
        first = next(iter(feed.values()), None)
        kind = next((type(value) for value in feed.values() if arrays.on_device(value)), None)
        found = {}
        for name, value in self.outputs.items():
            wanted = [slice(None)] * len(value.shape())
            for _, axis, size in [cut for cut in cuts if cut[0] == name]:
                wanted[axis] = slice(size)
            if kind is None:
                found[name] = arrays.from_numpy(np.array(value.numpy()[tuple(wanted)]), first)
            else:
                found[name] = arrays.copied(arrays.from_ort(value, kind, self._types[name])[tuple(wanted)])
        self._wait(feed)
        return found

    def answers(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the whole outputs, in the CPU's memory."""
        return {name: np.array(value.numpy()) for name, value in self.outputs.items()}

    def erase(self) -> None:
        """Zeros in all outputs, so that a replay which writes nothing shows."""
        for value in self.outputs.values():
            value.update_inplace(np.zeros_like(value.numpy()))

    def _wait(self, feed: Mapping[str, Array]) -> None:
        for value in feed.values():
            wait_for(value)
