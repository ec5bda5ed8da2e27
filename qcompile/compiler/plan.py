"""The quantization plan: what the quantize phase decided and the lower phase carries out.

Tensors and nodes are named; names are unique over the whole model, subgraphs included, once the
prepare phase has run. Nothing in the graph changes until the lower phase reads the plan.
"""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.params import QuantParams
from qcompile.compiler.scratch import on_disk
from qcompile.compiler.specs import QuantSpec

if TYPE_CHECKING:
    from qcompile.compiler.targets.table import Lowering


class Form(StrEnum):
    """How a node computes."""

    FLOAT = "float"
    INPUTS = "quantized inputs, float output"
    FULL = "quantized inputs and output"
    PASS = "codes pass through"
    ROWS = "rows of codes, looked up"
    DYNAMIC = "weights as codes, inputs quantized as it runs"
    BLOCKS = "weights as codes, inputs quantized by row and block"
    WEIGHTS = "weights as codes, float arithmetic"
    ROUNDED = "rounded inputs, float arithmetic"

    @property
    def low_precision(self) -> bool:
        return self is not Form.FLOAT

    @property
    def float_arithmetic(self) -> bool:
        """Products and sums are float, whatever is stored as codes."""
        return self in (Form.FLOAT, Form.WEIGHTS, Form.ROUNDED)


@dataclass(frozen=True)
class Unit:
    """One operation that will run in low precision, together with the nodes that belong to it.

    Attributes:
        node: name of the operation's node.
        form: how it computes.
        inputs: names of the activations it reads as codes, None for a weight or a float input.
        weight: name of its weight initializer, or None.
        bias: name of the Add node that adds a constant bias to the product, or None.
        activation: name of the Relu or Clip node that the output's range expresses, or None.
        output: name of the value that leaves the unit, after bias and activation.
        weight_spec: what the codes of its weight shall be, or None without one.
        state_weight, state_spec: the same for the second weight of a recurrent operator, which its state meets.
        lowering: the pattern it is written in, where the target has more than one for its form.
        tied: name of the node whose codes it reads, where its table is the weight of that product too.
    """

    node: str
    op_type: str
    form: Form
    inputs: tuple[str | None, ...]
    output: str
    weight: str | None = None
    bias: str | None = None
    activation: str | None = None
    weight_spec: QuantSpec | None = field(default=None, repr=False)
    state_weight: str | None = field(default=None, repr=False)
    state_spec: QuantSpec | None = field(default=None, repr=False)
    lowering: Lowering | None = field(default=None, repr=False)
    tied: str | None = field(default=None, repr=False)

    @property
    def lowered(self) -> str:
        """Name of the operator that a lowering by another operator puts in the place of its node."""
        return f"{self.node}_{self.weight_spec.format.name if self.weight_spec else 'int8'}"


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes of one initializer, in the format's own integer type and the tensor's layout, with their parameters."""

    params: QuantParams
    codes: npt.NDArray[np.integer[Any]]

    def on_disk(self) -> QuantizedWeight:
        """The same, with what is large in files."""
        params, scale, zero = self.params, on_disk(self.params.scale), on_disk(self.params.zero_point)
        if scale is not params.scale or zero is not params.zero_point:
            params = replace(params, scale=scale, zero_point=zero)
        return QuantizedWeight(params, on_disk(self.codes))


class WeightStore(UserDict[tuple[str, str], QuantizedWeight]):
    """The codes of every quantized initializer, by its name and the name of the unit's node (two units may quantize a
    shared weight along different axes). They may be larger than memory."""

    def __setitem__(self, key: tuple[str, str], weight: QuantizedWeight) -> None:
        super().__setitem__(key, weight.on_disk())


@dataclass(frozen=True, eq=False)
class QuantizedCache:
    """Keys or values of earlier tokens that are kept as codes, from run to run.

    Attributes:
        present: name of the output that the input `past` takes its next value from.
        params: their scale is [heads, columns].
    """

    past: str
    present: str
    params: QuantParams


@dataclass
class QuantPlan:
    """Decisions of the quantize phase.

    Attributes:
        units: operations that run in low precision, by node name, in graph order.
        tensors: parameters of every activation that exists as codes, by value name.
        weights: codes of every quantized initializer.
        kept_float: nodes that stay float although the target has a low-precision form: name -> reason.
        pinned: nodes that stay float whatever a later pass finds: the user says so, or a transform needs it.
        caches: the key-value caches that are kept as codes, by the name of the input.
        float_ms: what a node costs in float beyond each of its forms, by the target's table, conversions aside.
    """

    units: dict[str, Unit] = field(default_factory=dict)
    tensors: dict[str, QuantParams] = field(default_factory=dict)
    weights: WeightStore = field(default_factory=WeightStore)
    kept_float: dict[str, str] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    caches: dict[str, QuantizedCache] = field(default_factory=dict)
    float_ms: dict[tuple[str, Form], float] = field(default_factory=dict)

    def pin(self, node: str, reason: str) -> None:
        """Let a node stay float for a reason of the pass that made it."""
        self.pinned.add(node)
        self.kept_float[node] = reason

    def unpin(self, node: str) -> None:
        """Leave a node to the passes that place again."""
        self.pinned.discard(node)
        self.kept_float.pop(node, None)

    def pinned_because(self, node: str) -> str:
        """Why an earlier pass keeps a node float; empty where none does."""
        return self.kept_float.get(node, "") if node in self.pinned else ""

    def unplaced(self) -> QuantPlan:
        """A plan without decisions, but for the nodes that stay float."""
        reasons = {node: reason for node in sorted(self.pinned) if (reason := self.pinned_because(node))}
        return QuantPlan(pinned=set(self.pinned), kept_float=reasons)
