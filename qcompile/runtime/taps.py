"""Look inside a running model: chosen inner values become its outputs.

A value inside the body of an If, Loop or Scan cannot become an output of the whole model; `body_values`
names those, so that a caller can say what was not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.runtime.providers import CPU, open_session

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

CHUNK = 64
"""Values tapped at once: memory is bounded by that many activations of one sample."""


def outer_values(model: onnx.ModelProto) -> set[str]:
    """Names of the values that can be tapped: the inputs and every node output of the main graph."""
    inputs = {i.name for i in model.graph.input}
    return inputs | {name for node in model.graph.node for name in node.output if name}


def body_values(model: onnx.ModelProto) -> set[str]:
    """Names of the values inside bodies of control flow, at any depth."""
    found: set[str] = set()
    waiting = [body for node in model.graph.node for body in _bodies(node)]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            found |= {name for name in node.output if name}
            waiting += _bodies(node)
    return found


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else list(a.graphs))]


def chunks(names: Sequence[str], size: int = CHUNK) -> Iterator[Sequence[str]]:
    """`names` in runs of at most `size`, in order."""
    for start in range(0, len(names), size):
        yield names[start : start + size]


class Probe:
    """A session on the CPU that answers with inner values.

    Args:
        model: the model; it is not changed.
        names: values to read, out of `outer_values(model)`.
        folder: where the model's external data lies, if it has any.
        entries: session options by key.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        names: Sequence[str],
        folder: Path | None = None,
        entries: Mapping[str, str] | None = None,
    ) -> None:
        import onnx
        import onnxruntime as ort

        self.names = tuple(dict.fromkeys(names))
        unknown = set(self.names) - outer_values(model)
        if unknown:
            raise ValueError(f"not values of the main graph: {sorted(unknown)}")
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        typed = {o.name: o for o in model.graph.output}
        del tapped.graph.output[:]
        tapped.graph.output.extend(typed.get(name) or onnx.ValueInfoProto(name=name) for name in self.names)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        for entry, value in (entries or {}).items():
            options.add_session_config_entry(entry, value)
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = open_session(tapped.SerializeToString(), options, CPU, {})
        self._inputs = {i.name for i in self._session.get_inputs()}

    def __call__(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """The tapped values for one sample."""
        outputs = self._session.run(list(self.names), {k: v for k, v in sample.items() if k in self._inputs})
        return dict(zip(self.names, outputs, strict=True))
