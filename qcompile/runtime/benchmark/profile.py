"""What ONNX Runtime's profiler tells of the nodes of a model: their time, and the tensors they read and wrote.

The profiler sees the graph as the provider runs it: fused, laid out and placed, with the shapes of this very run.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import DataError
from qcompile.runtime.kv_cache import CacheCodes
from qcompile.runtime.providers import CPU, open_session, provider_options, reason

Array = np.ndarray[Any, Any]

_END, _RUN = "_kernel_time", "model_run"


@dataclass(frozen=True)
class Tensor:
    """Element type by ONNX's name ("float", "uint8") and shape of one input or output."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NodeRun:
    """One run of one node of the optimized graph.

    Attributes:
        inputs: those that are there; an optional one that is left out has no place.
        bytes: of all inputs and outputs.
    """

    name: str
    op_type: str
    milliseconds: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    bytes: int


def node_runs(
    model: Path, samples: Sequence[Mapping[str, Array]], provider: str = CPU, packed: bool = False
) -> list[list[NodeRun]]:
    """Every node that ran, for each sample, in order.

    Args:
        samples: of the model that `model` was made from, if its caches are codes.
        packed: let kernels pack their weights, as they do outside; the packed ones are missing from `inputs`.

    Raises:
        TargetError: the provider does not load on this machine.
        ModelError: ONNX Runtime refuses the model.
        DataError: it cannot run it on a sample.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    codes = CacheCodes.of(model)
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, options, provider, provider_options(provider, 0, None))
        for sample in samples:
            run(session, feed_of(session, codes.encode(sample)), model)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _by_run(events)


def node_times(
    model: Path, sample: Mapping[str, Array], provider: str = CPU, runs: int = 10
) -> list[tuple[str, str, float]]:
    """Where the time goes: (node of the optimized graph, its operator, median ms), slowest first."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for nodes in node_runs(model, [sample] * (runs + 1), provider, packed=True):
        for node in nodes:
            times[node.name, node.op_type].append(node.milliseconds)
    medians = [(name, op_type, float(np.median(t))) for (name, op_type), t in times.items()]
    return sorted(medians, key=lambda row: -row[2])


def run(session: Any, feed: Mapping[str, Array], model: Path) -> None:
    """Run an `onnxruntime.InferenceSession` of `model` once.

    Raises:
        DataError: it cannot.
    """
    try:
        session.run(None, feed)
    except Exception as error:
        raise DataError(f"ONNX Runtime could not run the model: {reason(error)}", where=str(model)) from None


def feed_of(session: Any, sample: Mapping[str, Array]) -> dict[str, Array]:
    """What of `sample` the model has inputs for."""
    names = {i.name for i in session.get_inputs()}
    return {name: array for name, array in sample.items() if name in names}


def _by_run(events: Iterable[Mapping[str, Any]]) -> list[list[NodeRun]]:
    """The profiler writes the event of a run behind those of its nodes."""
    found: list[list[NodeRun]] = []
    nodes: list[NodeRun] = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_END):
            nodes.append(_node_run(event))
        elif event["name"] == _RUN:
            found.append(nodes)
            nodes = []
    return found


def _node_run(event: Mapping[str, Any]) -> NodeRun:
    told = event["args"]
    return NodeRun(
        event["name"].removesuffix(_END),
        told["op_name"],
        event["dur"] / 1000,
        _tensors(told.get("input_type_shape")),
        _tensors(told.get("output_type_shape")),
        sum(int(told.get(size) or 0) for size in ("activation_size", "parameter_size", "output_size")),
    )


def _tensors(listed: list[dict[str, list[int]]] | None) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype, tuple(shape)) for entry in listed or () for dtype, shape in entry.items())
