"""Look inside a running model: chosen inner values become its outputs.

A value of an If's branch is handed out through the If, level by level; the branch that was not taken hands
out nothing in its place. Values inside a Loop or Scan exist once for each iteration: `body_values` names
those, so that a caller can say what was not looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.runtime.mapped_weights import find_weights, mapped, share
from qcompile.runtime.providers import ALL_BITS, CPU, CUDA, open_session, provider_options

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_LARGE = 1024
"""Bytes, at four for an element; smaller initializers may be shapes, which ONNX Runtime wants to see at once."""


def branches(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and every branch of an If that lies in it or in another branch; outer before inner."""
    found = [model.graph]
    for graph in found:
        found.extend(body for node in graph.node if node.op_type == "If" for body in _bodies(node))
    return found


def tappable_values(model: onnx.ModelProto) -> set[str]:
    """Names of the values that can be tapped: inputs, and node outputs of the main graph and of branches,
    as far as a name stands for one value only."""
    counts = Counter(name for graph in branches(model) for node in graph.node for name in node.output if name)
    inputs = {i.name for i in model.graph.input}
    return inputs | {name for name, count in counts.items() if count == 1}


def body_values(model: onnx.ModelProto) -> set[str]:
    """Names of all values inside bodies of control flow, at any depth."""
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


class Probe:
    """A session that answers with inner values.

    Args:
        model: the model; it is not changed.
        names: values to read, out of `tappable_values(model)`.
        folder: where the model's external data lies, if it has any.
        entries: session options by key.
        weights: large initializers by name, taken out of the model by `without_weights`: they are fed with
            each run, and opening the session is quick.
        provider: where it runs; on a GPU floats are computed with all their bits.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        names: Sequence[str],
        folder: Path | None = None,
        entries: Mapping[str, str] | None = None,
        weights: Mapping[str, Array] | None = None,
        provider: str = CPU,
    ) -> None:
        import onnx
        import onnxruntime as ort

        self.names = tuple(dict.fromkeys(names))
        unknown = set(self.names) - tappable_values(model)
        if unknown:
            raise ValueError(f"not values that can be tapped: {sorted(unknown)}")
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        handed = _hand_out(tapped, set(self.names))
        self._outputs = [handed.get(name, name) for name in self.names]
        typed = {o.name: o for o in model.graph.output}
        del tapped.graph.output[:]
        tapped.graph.output.extend(typed.get(name) or onnx.ValueInfoProto(name=name) for name in self._outputs)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        for entry, value in (entries or {}).items():
            options.add_session_config_entry(entry, value)
        self._shared = share(tapped, folder, options) if folder is not None and provider == CPU else []
        if folder is not None and provider != CPU:
            find_weights(folder, options)
        given = provider_options(provider, 0, None) | (ALL_BITS if provider == CUDA else {})
        self._session = open_session(tapped.SerializeToString(), options, provider, given)
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._weights = {name: array for name, array in (weights or {}).items() if name in self._inputs}

    def __call__(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """The tapped values for one sample; empty, of shape [0], where the branch was not taken."""
        feeds = self._weights | {k: v for k, v in sample.items() if k in self._inputs}
        return dict(zip(self.names, self._session.run(self._outputs, feeds), strict=True))


def without_weights(model: onnx.ModelProto, folder: Path) -> dict[str, Array]:
    """Make the large initializers of the main graph its inputs; returns their arrays by name.

    What is left needs no file beside the model.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    large = _large(model.graph)
    names = {t.name for t in large}
    for tensor in model.graph.initializer:
        if tensor.name not in names and uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]
    arrays = {t.name: mapped(t, folder) if uses_external_data(t) else onnx.numpy_helper.to_array(t) for t in large}
    _as_inputs(model.graph, large)
    return arrays


def _large(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [t for t in graph.initializer if math.prod(t.dims) * 4 > _LARGE and t.data_type != t.STRING]


def _as_inputs(graph: onnx.GraphProto, tensors: Sequence[onnx.TensorProto]) -> None:
    import onnx

    inputs, names = {i.name for i in graph.input}, {t.name for t in tensors}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors if t.name not in inputs
    )
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name in names:
            del graph.initializer[i]


def _hand_out(model: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """Give the Ifs of `model` an output for each value of `names` that lies in a branch; returns their names."""
    main = {name for node in model.graph.node for name in node.output}
    inside = names - main - {i.name for i in model.graph.input}
    return _through_ifs(model.graph, inside, _types(model)) if inside else {}


def _through_ifs(graph: onnx.GraphProto, names: set[str], types: Mapping[str, int]) -> dict[str, str]:
    """Values of branches below `graph`: their name -> the name under which a value of `graph` has them."""
    import onnx

    handed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "If":
            continue
        bodies = _bodies(node)
        found = []
        for body in bodies:
            own = {name: name for n in body.node for name in n.output if name in names}
            found.append(own | _through_ifs(body, names, types))
        for name in sorted({name for part in found for name in part}):
            for body, part in zip(bodies, found, strict=True):
                given = part.get(name)
                if given is None:
                    given = f"{name}@{body.name}@nothing"
                    nothing = onnx.helper.make_tensor("nothing", types.get(name, onnx.TensorProto.FLOAT), [0], [])
                    body.node.append(onnx.helper.make_node("Constant", [], [given], value=nothing))
                elif given in {o.name for o in body.output}:  # ONNX Runtime fills one of two equal outputs only
                    given = f"{name}@copy"
                    body.node.append(onnx.helper.make_node("Identity", [name], [given]))
                body.output.append(onnx.ValueInfoProto(name=given))
            handed[name] = f"{name}@{node.output[0]}"
            node.output.append(handed[name])
    return handed


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element types of the values of branches, as far as they can be inferred."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    _as_inputs(bare.graph, _large(bare.graph))
    inferred = onnx.shape_inference.infer_shapes(bare)
    known = (v for graph in branches(inferred) for v in (*graph.value_info, *graph.output))
    return {v.name: v.type.tensor_type.elem_type for v in known if v.type.HasField("tensor_type")}
