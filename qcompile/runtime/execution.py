"""How an opened model is run: the seam between a session and what makes it fast on a device.

    host      arrays in the CPU's memory, on any provider
    bound     arrays in a GPU's memory, or of types that numpy does not know, bound where they lie (`binding`)
    graphs    either, copied to where a CUDA graph reads them (`graph_execution`)

A session checks names, element types and shapes before it calls `Execution.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from qcompile.runtime import arrays
from qcompile.runtime.arrays import NO_ADAPTER, Array
from qcompile.runtime.binding import BoundExecution
from qcompile.runtime.cuda_graphs import Uncaptured
from qcompile.runtime.description import State
from qcompile.runtime.graph_execution import GraphExecution, NoGraphs
from qcompile.runtime.ports import Port
from qcompile.runtime.providers import CPU, CUDA
from qcompile.runtime.settings import Settings
from qcompile.runtime.streams import Stream


class Execution(Protocol):
    """One way to run a model. Several threads may call it at once."""

    def run(self, feed: Mapping[str, Array], adapter: Mapping[str, Array] = NO_ADAPTER) -> dict[str, Array]:
        """Run once.

        Args:
            feed: input name -> array of the right element type and shape, of any library and on any device.
            adapter: the same for inputs with a default, as OrtValues on the device of the provider.

        Returns:
            Output name -> array of the kind and on the device of the inputs, which no later run writes to.
        """

    def state(self) -> State:
        """What there is to say of it now."""


class HostExecution:
    """Arrays in the CPU's memory: read where they lie, copied only if the provider has a memory of its own."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feed: Mapping[str, Array], adapter: Mapping[str, Array] = NO_ADAPTER) -> dict[str, Array]:
        first = next(iter(feed.values()), None)
        results = self._session.run(None, {**{name: arrays.to_numpy(value) for name, value in feed.items()}, **adapter})
        return {name: arrays.from_numpy(result, first) for name, result in zip(self._outputs, results, strict=True)}

    def state(self) -> State:
        return State()


class AnyExecution:
    """Each feed as suits the place where it lies."""

    def __init__(self, host: Execution, device: Execution) -> None:
        self._host, self._device = host, device

    def run(self, feed: Mapping[str, Array], adapter: Mapping[str, Array] = NO_ADAPTER) -> dict[str, Array]:
        chosen = self._device if any(arrays.on_device(value) for value in feed.values()) else self._host
        return chosen.run(feed, adapter)

    def state(self) -> State:
        return self._device.state()


def choose(session: Any, provider: str, settings: Settings, no_graphs: str = "") -> Execution:
    """The execution of `session`, an `onnxruntime.InferenceSession` that runs on `provider`.

    Args:
        no_graphs: why it was not opened to capture CUDA graphs, though the settings ask for them.
    """
    if not settings.cuda_graphs:
        return _without_graphs(session, provider, settings)
    foreign = {port.dtype for port in map(Port.of, session.get_outputs())}.intersection(arrays.FOREIGN_TO_NUMPY)
    if provider != CUDA:
        no_graphs = f"the model runs on {provider}"
    elif foreign and not no_graphs:
        no_graphs = f"what a replay gives cannot be compared in {min(foreign)}"
    if no_graphs:
        return NoGraphs(_without_graphs(Uncaptured(session), provider, settings), no_graphs)
    return GraphExecution(session, _without_graphs(Uncaptured(session), provider, settings), settings)


def _without_graphs(session: Any, provider: str, settings: Settings) -> Execution:
    ports = [Port.of(port) for port in (*session.get_inputs(), *session.get_outputs())]
    foreign = any(port.dtype in arrays.FOREIGN_TO_NUMPY for port in ports)
    host = BoundExecution(session, ("cpu", 0), Stream()) if foreign else HostExecution(session)
    if provider == CPU:
        return host
    return AnyExecution(host, BoundExecution(session, ("cuda", settings.device), Stream(settings.stream)))
