"""Arrays on a device, bound where they lie; results stay there.

A binding remembers addresses: an input is bound again only when its address or shape has changed. Outputs are bound
again after every run, which costs a microsecond and gives every run memory of its own; a binding that keeps its
outputs would write the next results over those that the caller still holds.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.errors import DataError
from qcompile.runtime import arrays
from qcompile.runtime.arrays import Array
from qcompile.runtime.description import State
from qcompile.runtime.settings import Settings


class DeviceExecution:
    """Runs on a device, with a binding for each thread."""

    def __init__(self, session: Any, outputs: Sequence[str], settings: Settings) -> None:
        self._session = session
        self._outputs = outputs
        self._device = settings.device
        self._of_thread = threading.local()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._binding()
        kind = type(next(value for value in feed.values() if arrays.on_device(value)))
        held = {name: self._on_this_device(name, value) for name, value in feed.items()}
        binding.bind(held)
        arrays.wait_for(kind)
        results = binding.run()
        return {name: arrays.from_ort(value, kind) for name, value in zip(self._outputs, results, strict=True)}

    def state(self) -> State:
        return State()

    def _binding(self) -> Binding:
        if not hasattr(self._of_thread, "binding"):
            self._of_thread.binding = Binding(self._session, self._outputs, self._device)
        binding: Binding = self._of_thread.binding
        return binding

    def _on_this_device(self, name: str, value: Array) -> Any:
        if arrays.on_device(value) and arrays.device_number(value) != self._device:
            raise DataError(
                f"input '{name}' lies on GPU {arrays.device_number(value)}, the session runs on GPU {self._device}",
                hint=f"move it, or open the session with device={arrays.device_number(value)}",
            )
        return arrays.to_ort(value)


class Binding:
    """One I/O binding, which is told of an input only when that has changed."""

    def __init__(self, session: Any, outputs: Sequence[str], device: int) -> None:
        self._session = session
        self._outputs = outputs
        self._device = device
        self._binding = session.io_binding()
        self._bound: dict[str, tuple[int, list[int], str]] = {}
        self._release_outputs()

    def bind(self, feed: Mapping[str, Any]) -> None:
        """Bind OrtValues, which the caller keeps alive until the run is over; the binding holds addresses alone."""
        if feed.keys() != self._bound.keys():
            self._binding.clear_binding_inputs()
            self._bound = {}
        for name, value in feed.items():
            place = value.data_ptr(), value.shape(), value.device_name()
            if self._bound.get(name) != place:
                address, shape, device = place
                self._binding.bind_input(
                    name, device, self._device if device == "cuda" else 0, value.element_type(), shape, address
                )
                self._bound[name] = place

    def run(self) -> list[Any]:
        """Run, and the outputs as OrtValues in memory of their own."""
        try:
            self._session.run_with_iobinding(self._binding)
            results: list[Any] = self._binding.get_outputs()
        finally:
            self._release_outputs()
        return results

    def _release_outputs(self) -> None:
        for name in self._outputs:
            self._binding.bind_output(name, "cuda", self._device)
