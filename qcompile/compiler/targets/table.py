"""The shape of a target: what one provider executes in low precision, in which pattern, at what cost.

Placement, lowering and the verifier read the same table, so a fact about a provider is written once,
with its evidence. Costs are nanoseconds on one core of the machine named in the evidence; only
their ratios matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.formats import NumericFormat
from qcompile.compiler.plan import Form
from qcompile.compiler.specs import PerChannel, QuantSpec
from qcompile.compiler.targets.half import Half
from qcompile.compiler.targets.rule import Rule
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.ways import Way
from qcompile.compiler.weight_pattern import is_sparse
from qcompile.errors import TargetError


@dataclass(frozen=True)
class Work:
    """How much one execution does: multiply-accumulates, and elements written, read and held as weights."""

    macs: float = 0.0
    outputs: float = 0.0
    inputs: float = 0.0
    weights: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Time of one execution, in ns, for each unit of its work. Weights count apart from the products they
    enter: a matrix-vector product waits for them, a matrix product does not."""

    per_mac: float = 0.0
    per_output: float = 0.0
    fixed: float = 0.0
    per_input: float = 0.0
    per_weight: float = 0.0

    def time(self, work: Work) -> float:
        return (
            self.fixed
            + self.per_mac * work.macs
            + self.per_output * work.outputs
            + self.per_input * work.inputs
            + self.per_weight * work.weights
        )


@dataclass(frozen=True)
class Condition:
    """A restriction of a row, with the reason a user reads when it does not hold."""

    reason: str
    holds: Callable[[ir.Node], bool]


class Lowering(StrEnum):
    """The pattern a unit is written in."""

    QDQ = "QuantizeLinear / DequantizeLinear around the float operator"
    INTEGER_MATMUL = "com.microsoft::MatMulIntegerToFloat with scales and bias"
    ROWS = "rows of a table of codes, looked up and then scaled"
    DYNAMIC = "com.microsoft::DynamicQuantizeMatMul"
    DYNAMIC_LSTM = "com.microsoft::DynamicQuantizeLSTM"
    BLOCKS = "com.microsoft::MatMulNBits"
    OPERATOR = "an operator of the domain qcompile, which carries its definition"
    BNB4 = "com.microsoft::MatMulBnb4"
    BLOCKED_DQ = "DequantizeLinear before the float operator"
    BLOCK_ROWS = "com.microsoft::GatherBlockQuantized"
    BLOCK_FP8 = "com.microsoft::MatMulBlockQuantizedFp8Weight"
    BLOCK_FP4 = "com.microsoft::MatMulBlockQuantizedFp4Weight"
    EMULATED = "codes and scales in the file, multiplied when the model loads"


def _every_node(_: ir.Node) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """One operator, or one variant of it, on one target.

    Attributes:
        op_type: operator of the default ONNX domain.
        variant: what this row's nodes have in common ("depthwise"); empty when there is one row.
        selects: whether a node belongs to this variant.
        float_cost: its time in float.
        forms: low-precision forms it can take, each with its time.
        activations: positions of the inputs that become codes; empty means every input.
        weight: position of the input that must be a constant and becomes int8 per channel, or None.
        weight_axis: the output-channel axis of the weight, given the node.
        state_weight: position of the second weight of a recurrent operator; both then have one scale for each
            direction and row.
        bias: position of the optional bias input, or None.
        same_params: inputs and output must share one scale and zero point (codes are moved, not computed).
        on_request: costs accuracy, so it is quantized only when the recipe asks for it.
        conditions: what must hold besides.
        lowering: the pattern of each form.
        refused: forms that exist and are not offered, each with the reason a user reads.
        kernels: operators of the runtime's optimized graph that prove the form really runs.
        evidence: how we know.
    """

    op_type: str
    float_cost: Cost
    forms: Mapping[Form, Cost]
    kernels: tuple[str, ...]
    evidence: str
    variant: str = ""
    selects: Callable[[ir.Node], bool] = _every_node
    activations: tuple[int, ...] = ()
    weight: int | None = None
    weight_axis: Callable[[ir.Node], int] | None = None
    state_weight: int | None = None
    bias: int | None = None
    same_params: bool = False
    on_request: bool = False
    conditions: tuple[Condition, ...] = ()
    lowering: Mapping[Form, Lowering] | None = None
    refused: Mapping[Form, str] | None = None

    def how(self, form: Form) -> Lowering:
        return (self.lowering or {}).get(form, Lowering.QDQ)


@dataclass(frozen=True)
class Detour:
    """A pair of operators that the runtime fuses into something slower, and how to keep them apart.

    Attributes:
        first, second: operator types; `second` alone reads the result of `first`.
        instead: an operator that computes the same as `first` and is not fused.
        evidence: both times.
    """

    first: str
    second: str
    instead: str
    evidence: str


@dataclass(frozen=True)
class Merging:
    """Linear layers that read the same tensor run faster as one product.

    Attributes:
        multiple: the output columns of each must be a multiple of this, so that the parts stay aligned.
        activations: what the kernel of a linear layer computes on its result; a layer with one stays by itself.
        evidence: why it pays.
    """

    evidence: str
    multiple: int = 1
    activations: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SparseProducts:
    """Linear layers whose weight has the 2:4 pattern are multiplied without its zeros.

    Attributes:
        outputs, inputs: what N and K must be multiples of.
        evidence: how we know.
    """

    outputs: int
    inputs: int
    evidence: str

    def takes(self, weight: npt.NDArray[Any]) -> bool:
        """Whether `weight`, [N, K], float or codes that are 0 where it is, has the pattern and a shape for it."""
        n, k = weight.shape
        return n % self.outputs == 0 and k % self.inputs == 0 and is_sparse(weight, 1)


@dataclass(frozen=True)
class Formats:
    """A format of activations and one of weights that go together.

    Attributes:
        symmetric: symmetries of activations that the target takes, the usual one first.
        computed: kernels compute on the codes; otherwise the target computes in float between conversions.
        warning: what a user who asks for it must know, empty when nothing.
        evidence: how we know.
    """

    activation: NumericFormat
    weight: NumericFormat
    symmetric: tuple[bool, ...] = (False, True)
    computed: bool = True
    warning: str = ""
    evidence: str = ""

    def __str__(self) -> str:
        one = "" if len(self.symmetric) > 1 else "symmetric " if self.symmetric[0] else "asymmetric "
        return f"{one}{self.activation.name} activations with {self.weight.name} weights"


@dataclass(frozen=True)
class Caches:
    """Formats in which keys and values of earlier tokens can be kept.

    Attributes:
        op_type: the operator that appends the new ones.
        evidence: how we know.
    """

    op_type: str
    formats: tuple[NumericFormat, ...]
    evidence: str


class PlacementRule(StrEnum):
    """How a target wants its Q/DQ placed."""

    MINIMUM_CUT = "the assignment of least time, conversions included"
    WEIGHTED_INPUTS = "inputs of weighted operators; the builder fuses the rest"


@dataclass(frozen=True)
class Target:
    """A capability table.

    Attributes:
        name: as given to `--target`.
        providers: ONNX Runtime execution providers, best first.
        formats: what may be asked for, the usual pair first.
        refused: formats that exist and are not offered, by name, with the reason a user reads.
        block: weights of a matrix in the form BLOCKS that share a scale, unless a recipe says otherwise.
        quantize, dequantize: cost of a conversion.
        relayout: what a conversion costs besides on an image (rank 4), when float and int8 convolutions
            keep their channels in different places.
        swallows: operators whose float weight the runtime quantizes by itself, per tensor, when they stand
            between codes; it is better to do it ourselves, per channel.
        merging: how linear layers of one input become one product; None where that does not pay.
        sparse: the products it has for weights of the 2:4 pattern, None where they run as dense ones or where the
            runtime finds them by itself.
        placement: the rule of placement.
        detours: fusions of the runtime that cost time and are kept from happening.
        float_bias: the bias of a quantized unit must stay float.
        unify_concat: inputs and output of a Concat share their scale.
        rows: the first row that selects a node is its row; a node without one stays float.
        storages: how weights alone are kept as codes, best first.
        caches: how a key-value cache can be kept; empty where it stays float.
        unfused: why Q/DQ around a float operator gains nothing here; empty where the runtime fuses them.
        half: what it computes in float16 and bfloat16.
        opset: the lowest in which its operators are the ones of this table.
        highest_opset: the newest that it reads; None where there is no limit.
        rules: what it asks of single nodes besides.
        ways: the providers by which artifacts run and the options they need; empty where the first of `providers`
            needs none.
        evidence: where the table as a whole comes from.
    """

    name: str
    providers: tuple[str, ...]
    formats: tuple[Formats, ...]
    quantize: Cost
    dequantize: Cost
    placement: PlacementRule
    rows: tuple[Row, ...]
    evidence: str
    refused: Mapping[str, str] = field(default_factory=dict)
    relayout: Cost = Cost()
    swallows: frozenset[str] = frozenset()
    detours: tuple[Detour, ...] = ()
    merging: Merging | None = None
    sparse: SparseProducts | None = None
    float_bias: bool = False
    unify_concat: bool = False
    caches: tuple[Caches, ...] = ()
    unfused: str = ""
    block: int = 32
    storages: tuple[Storage, ...] = ()
    half: Half = field(default_factory=Half)
    opset: int = 13
    highest_opset: int | None = None
    rules: tuple[Rule, ...] = ()
    ways: tuple[Way, ...] = ()

    @property
    def activation(self) -> QuantSpec:
        """What activations become unless a recipe says otherwise."""
        return QuantSpec(self.formats[0].activation, symmetric=self.formats[0].symmetric[0])

    @property
    def weight(self) -> QuantSpec:
        """What weights become unless a recipe says otherwise; the axis is set per node."""
        return QuantSpec(self.formats[0].weight, PerChannel(0), symmetric=True)

    def pair(self, activation: str | None, weight: str | None, symmetric: bool | None) -> Formats:
        """The first pair of formats that fits what is asked for; None leaves a choice open.

        Raises:
            TargetError: there is none; it lists what there is.
        """
        for formats in self.formats:
            if (
                activation in (None, formats.activation.name)
                and weight in (None, formats.weight.name)
                and (symmetric is None or symmetric in formats.symmetric)
            ):
                return formats
        where = f"target '{self.name}'"
        for name in (activation, weight):
            if name is not None and name in self.refused:
                raise TargetError(self.refused[name], where=where)
        zero = {None: "", True: "symmetric ", False: "asymmetric "}[symmetric]
        raise TargetError(
            f"it takes no {zero}{f'{activation} ' if activation else ''}activations with {weight or 'any'} weights",
            where=where,
            hint="there are " + "; ".join(map(str, self.formats)),
        )

    def row(self, node: ir.Node) -> Row | None:
        """The first row that selects `node`, or None."""
        if node.domain not in ("", "ai.onnx"):
            return None
        return next((r for r in self.rows if r.op_type == node.op_type and r.selects(node)), None)

    def provider_options(self, model: ir.Model) -> dict[str, dict[str, str]]:
        """The providers that can run `model`, with the options it needs there, as they go into its manifest."""
        return {way.provider: way.needs(model) for way in self.ways if not way.obstacle(model)}

    def closed_ways(self, model: ir.Model) -> dict[str, str]:
        """The providers that cannot run `model`, each with the reason."""
        return {way.provider: why for way in self.ways if (why := way.obstacle(model))}
