"""The report of one compilation: plain data, shown as a table, as JSON or as an HTML page."""

from __future__ import annotations

from pydantic import BaseModel, Field

NOISELESS = 200.0
"""The SQNR in dB that stands for equal tensors, since JSON has no infinity; float32 itself resolves about 150."""


class PassRecord(BaseModel):
    """One pass as it ran. `seconds` is wall time; node counts include control-flow bodies."""

    name: str
    phase: str
    seconds: float
    modified: bool
    nodes_before: int
    nodes_after: int


class UnitRecord(BaseModel):
    """One operation planned for low precision and what the runtime made of it.

    `proved` is None when dispatch was not examined (the provider is not on this machine).
    """

    node: str
    op_type: str
    form: str
    kernel: str | None = None
    proved: bool | None = None
    reason: str = ""


class FloatRecord(BaseModel):
    """A node that stayed float, and why."""

    node: str
    op_type: str
    reason: str


class PlacedNode(BaseModel):
    """One operation of the artifact, in graph order: the picture of where Q and DQ sit.

    `form` is a value of plan.Form; `quantizes` and `dequantizes` count the conversions that stand
    directly before it and cost time there: a float value that it reads as codes, or codes that it
    reads as float. `reason` says why it stayed float.
    """

    node: str
    op_type: str
    form: str
    reason: str = ""
    quantizes: int = 0
    dequantizes: int = 0


class LayerNoise(BaseModel):
    """Noise of one value against the float model, in dB and as a cosine.

    `isolated_sqnr`, `isolated_cosine`: this unit alone computes in low precision; `sqnr`, `cosine`:
    everything before it does too. None where it was not measured. Higher is better.
    """

    node: str
    op_type: str
    value: str
    sqnr: float | None = None
    cosine: float | None = None
    isolated_sqnr: float | None = None
    isolated_cosine: float | None = None


class FloatGain(BaseModel):
    """What leaving this unit alone in float would change.

    `gain`: dB by which the signal-to-noise ratio of the model's outputs would rise (it may fall, where errors
    cancel); `float_ms`: time it would cost by the target's table, conversions aside; None when it is not known.
    """

    node: str
    op_type: str
    form: str
    gain: float
    float_ms: float | None = None


class FloatGains(BaseModel):
    """Where the noise of the outputs comes from: units of the artifact put back to float, one at a time.

    `sqnr`: of all floating-point outputs of the artifact, on `samples` samples: -10 log10 of their mean
    noise-to-signal ratio. `units`: how many units compute; those in `gains`, the largest gain first, were
    measured. `proposed`: the units worth a try, which buy `together` dB in one go. `setting`: the option that
    leaves them in float, empty when the recipe has none.
    """

    sqnr: float
    units: int
    samples: int
    gains: list[FloatGain] = Field(default_factory=list)
    proposed: list[str] = Field(default_factory=list)
    together: float = 0.0
    setting: str = ""


class OutputNoise(BaseModel):
    """One model output against the float model, over all held-out samples."""

    name: str
    sqnr: float
    cosine: float
    max_error: float


class Edit(BaseModel):
    """The price of passes that change the float function on purpose: what they left, in float, against the model as
    it was given. `metric` is the user's, where there is one."""

    passes: list[str]
    outputs: list[OutputNoise] = Field(default_factory=list)
    metric: float | None = None


class Speed(BaseModel):
    """Interleaved medians on one provider, in ms; `spread` is (90th - 10th percentile) / median of the ratio."""

    provider: str
    float_ms: float
    compiled_ms: float
    spread: float
    slowest: list[tuple[str, float]] = Field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Above 1 the compiled model is faster."""
        return self.float_ms / self.compiled_ms


class Histogram(BaseModel):
    """Distribution of one weight before and after: `counts` between `edges` (one longer)."""

    name: str
    sqnr: float
    edges: list[float]
    float_counts: list[int]
    quantized_counts: list[int]


class TensorBytes(BaseModel):
    """Bytes of one group of initializers before and after."""

    name: str
    before: int
    after: int


class CodedWeights(BaseModel):
    """Weights of one format and block size that are stored as codes while their layers' inputs are float in the graph.

    Attributes:
        layers: operators that read them; a head tied to its embedding reads the same weights.
        elements: weights, each counted once.
        bytes: codes, scales and zero points.
        restored: the runtime makes them float when it loads the model.
    """

    format: str
    block: int | None
    layers: int
    elements: int
    bytes: int
    restored: bool

    @property
    def bits(self) -> float:
        """Bits of one weight."""
        return 8 * self.bytes / self.elements if self.elements else 0.0


class Proof(BaseModel):
    """One proof: `passed` None means it could not be tried here, and `detail` says why."""

    name: str
    passed: bool | None
    detail: str


class Report(BaseModel):
    """Everything a compilation found out.

    `page` is where its HTML page lies, empty when none was written; `kernels` says how the artifact's operators of
    domain `qcompile` ran in the proofs, empty when it has none. Where there is an `edit`, `outputs` and `layers` are
    held against the edited float model.
    """

    model: str
    artifact: str
    page: str = ""
    recipe: str
    target: str
    versions: dict[str, str]
    data: str
    synthetic_data: bool = False
    samples: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    notices: list[str] = Field(default_factory=list)
    passes: list[PassRecord] = Field(default_factory=list)
    units: list[UnitRecord] = Field(default_factory=list)
    kernels: str = ""
    kept_float: list[FloatRecord] = Field(default_factory=list)
    placement: list[PlacedNode] = Field(default_factory=list)
    proofs: list[Proof] = Field(default_factory=list)
    outputs: list[OutputNoise] = Field(default_factory=list)
    edit: Edit | None = None
    layers: list[LayerNoise] = Field(default_factory=list)
    float_gains: FloatGains | None = None
    weights: list[Histogram] = Field(default_factory=list)
    tensors: list[TensorBytes] = Field(default_factory=list)
    coded: list[CodedWeights] = Field(default_factory=list)
    speed: Speed | None = None
    metric_float: float | None = None
    metric_compiled: float | None = None

    @property
    def failed(self) -> list[Proof]:
        """Proofs that failed (not those that could not be tried)."""
        return [p for p in self.proofs if p.passed is False]
