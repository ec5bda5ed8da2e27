"""Arrays bound where they lie; results stay on the device of the inputs.

A binding remembers addresses: an input that lies on the provider's device is bound again only when its address or
shape has changed. What lies elsewhere is copied by ONNX Runtime from the moment it is bound (onnxruntime issue 15438),
so it is bound for every run, and waited for. Outputs are bound for every run too, which gives each run memory of its
own: a binding that keeps its outputs writes the next results over those that the caller still holds.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.errors import DataError
from qcompile.runtime import arrays
from qcompile.runtime.arrays import NO_ADAPTER, Array, Memory
from qcompile.runtime.description import State
from qcompile.runtime.ports import Port, onnx_number
from qcompile.runtime.streams import Stream


class BoundExecution:
    """Runs on bound memory, with a binding for each thread.

    Args:
        device: where the provider computes and results are left, "cpu" or "cuda" and its number.
        stream: what the session runs on.
    """

    def __init__(self, session: Any, device: tuple[str, int], stream: Stream) -> None:
        self._session = session
        self._device = device
        self._stream = stream
        self._outputs = [Port.of(output) for output in session.get_outputs()]
        self._of_thread = threading.local()

    def run(self, feed: Mapping[str, Array], adapter: Mapping[str, Array] = NO_ADAPTER) -> dict[str, Array]:
        held = {name: self._memory(name, value) for name, value in (*feed.items(), *adapter.items())}
        leading = next((array for array in feed.values() if arrays.on_device(array)), next(iter(feed.values()), None))
        alone = all(memory.device == self._device for memory in held.values())
        binding = self._binding()
        with self._stream.ordered(leading, alone) as options:
            binding.bind(held)
            results = binding.run(options)
        return {
            port.name: arrays.from_ort(value, arrays.kind_of(leading), port.dtype)
            for port, value in zip(self._outputs, results, strict=True)
        }

    def state(self) -> State:
        return State()

    def _binding(self) -> Binding:
        if not hasattr(self._of_thread, "binding"):
            self._of_thread.binding = Binding(self._session, self._device)
        binding: Binding = self._of_thread.binding
        return binding

    def _memory(self, name: str, array: Array) -> Memory:
        lies = arrays.device_of(array)
        if lies[0] == self._device[0] == "cuda" and lies != self._device:
            raise DataError(
                f"input '{name}' lies on GPU {lies[1]}, the session runs on GPU {self._device[1]}",
                hint=f"move it, or open the session with device={lies[1]}",
            )
        return arrays.memory(array)


class Binding:
    """One I/O binding, which is told of an input only when that has changed. Not for two threads at once."""

    def __init__(self, session: Any, device: tuple[str, int]) -> None:
        self._session = session
        self._device = device
        given = [*session.get_inputs(), *session.get_overridable_initializers()]
        self._types = {port.name: onnx_number(port.dtype) for port in map(Port.of, given)}
        self._outputs: Sequence[str] = [output.name for output in session.get_outputs()]
        self._binding = session.io_binding()
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._release_outputs()

    def bind(self, feed: Mapping[str, Memory]) -> None:
        """Bind inputs. The binding holds addresses alone: the caller keeps the memory until the run is over."""
        if feed.keys() != self._bound.keys():
            self._binding.clear_binding_inputs()
            self._bound = {}
        for name, memory in feed.items():
            place = memory.address, memory.shape
            if memory.device != self._device or self._bound.get(name) != place:
                self._binding.bind_input(name, *memory.device, self._types[name], memory.shape, memory.address)
                self._bound[name] = place
        if any(memory.device != self._device for memory in feed.values()):
            self._binding.synchronize_inputs()

    def run(self, options: Any = None) -> list[Any]:
        """Run, and the outputs as OrtValues in memory of their own."""
        try:
            self._session.run_with_iobinding(self._binding, options)
            results: list[Any] = self._binding.get_outputs()
        finally:
            self._release_outputs()
        return results

    def _release_outputs(self) -> None:
        for name in self._outputs:
            self._binding.bind_output(name, *self._device)
