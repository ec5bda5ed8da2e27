"""All proofs of one artifact, in the order in which a failure explains the next.

Nothing here raises because a proof failed: the report says so, and the caller decides what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.compiler.context import CompileContext, Metric, Progress, Sample, SilentProgress
from qcompile.compiler.graph import nodes
from qcompile.compiler.passes import Phase, registered_passes
from qcompile.compiler.plan import QuantPlan, Unit
from qcompile.compiler.report import Edit, OutputNoise, Proof, Report
from qcompile.compiler.serialization import in_a_file
from qcompile.compiler.stored_weights import coded_weights, not_on_the_cpu
from qcompile.compiler.targets.table import Target
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.expectations import expected_units
from qcompile.compiler.verification.gains import SAMPLES, measure_gains
from qcompile.compiler.verification.layers import measure_layers
from qcompile.compiler.verification.legality import prove_legality
from qcompile.compiler.verification.metric import measure, prove_metric
from qcompile.compiler.verification.noise import Runner, compare_outputs, runner
from qcompile.compiler.verification.placed import placed_nodes
from qcompile.compiler.verification.reference import Reference
from qcompile.compiler.verification.room import entries_for, fit, ran_out
from qcompile.compiler.verification.sparsity import layer_patterns, prove_sparsity
from qcompile.compiler.verification.speed import prove_speed
from qcompile.compiler.verification.weights import group_bytes, worst_histograms
from qcompile.errors import QCompileError
from qcompile.runtime.device import Device
from qcompile.runtime.memory import free_bytes
from qcompile.runtime.model_header import manifest
from qcompile.runtime.ops.kernels import choose
from qcompile.runtime.providers import CPU, CUDA, session_entries, why_not_loaded

_TIMED = 1.0  # seconds for the timing

_FEW = 2
"""Samples on which the layers of a model larger than memory are measured: each run reads all of its files."""


def prove(report: Report, context: CompileContext, artifact: Path) -> None:
    """Prove what `context` planned and `artifact` holds; fills the report's proofs and findings."""
    prover = _Prover(
        report, artifact, context.target, context.progress, context.plan, context.unquantized, context.device
    )
    prover.graph(context.held_out, context.unquantized or ir.load(context.float_model))
    report.metric_float = context.metric_float
    known = registered_passes()
    thins = any(record.name in known and known[record.name].changes_function for record in report.passes)
    asks = {Phase.QUANTIZE} if thins else {Phase.QUANTIZE, Phase.LOWER}
    if report.passes and asks.isdisjoint(record.phase for record in report.passes):
        report.kept_float = []  # nobody wants low precision
    if not context.edits or context.unquantized is None:
        prover.against(context.float_model, context.held_out, context.metric)
        return
    report.edit = Edit(passes=list(dict.fromkeys(context.edits)))
    with in_a_file(context.unquantized) as edited:
        prover.against(context.float_model, context.held_out, context.metric, edited)


def verify(
    model: Path,
    target: Target,
    *,
    against: Path | None = None,
    samples: Sequence[Sample] = (),
    metric: Metric | None = None,
    versions: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Prove a model that exists already, whoever made it.

    Args:
        against: the float model; without it nothing is said about numbers and speed.
        samples: inputs for the comparison.

    Returns:
        A report without passes.
    """
    report = Report(
        model=str(against or model),
        artifact=str(model),
        recipe="",
        target=target.name,
        versions=dict(versions or {}),
        data="samples of the comparison" if samples else "none",
        samples=len(samples),
    )
    prover = _Prover(report, model, target, progress or SilentProgress())
    prover.graph(samples, ir.load(against) if against is not None else None)
    if against is not None:
        prover.against(against, list(samples), metric)
    if edits := (manifest(model) or {}).get("edits", ()):
        report.proofs = [_apart(proof, edits) if proof.name == "numerics" else proof for proof in report.proofs]
        if not report.units:
            report.kept_float = []  # fewer weights were wanted, not codes
    return report


def _apart(numerics: Proof, edits: Sequence[str]) -> Proof:
    """Noise of a model that passes changed on purpose, against another one than they left, refutes nothing."""
    if numerics.passed is not False:
        return numerics
    who = ", ".join(edits)
    detail = (
        f"{numerics.detail}; {who} changed the float model on purpose when it was made: compare with what they left"
    )
    return numerics.model_copy(update={"passed": None, "detail": detail})


class _Prover:
    """The proofs of one artifact, each added to the report as it is made."""

    def __init__(
        self,
        report: Report,
        artifact: Path,
        target: Target,
        progress: Progress,
        plan: QuantPlan | None = None,
        unquantized: ir.Model | None = None,
        device: Device = Device.CPU,
    ) -> None:
        self.report, self.artifact, self.target, self.progress = report, artifact, target, progress
        self.plan, self.unquantized, self.device = plan, unquantized, device
        self.model = ir.load(artifact)
        self.provider = target.providers[0]

    @cached_property
    def units(self) -> Mapping[str, Unit]:
        """What was planned, or what the artifact claims where no plan is at hand."""
        return self.plan.units if self.plan is not None else expected_units(self.model, self.target)

    @cached_property
    def missing(self) -> str:
        """Why the target's provider cannot run the artifact here, empty when it can."""
        if reason := why_not_loaded(self.provider):
            return f"{self.provider} does not load: {reason}"
        closed = self.target.closed_ways(self.model).get(self.provider, "")
        return f"{self.provider} cannot run it: {closed}" if closed else ""

    @property
    def layers_on(self) -> str:
        """Where layers are measured: on the GPU that compiles, if the artifact runs there without engines."""
        on_gpu = self.device is Device.CUDA and self.provider == CUDA and not self.missing
        return CUDA if on_gpu else CPU

    @cached_property
    def unpacked(self) -> dict[str, str]:
        """Session options for an artifact whose packed weights do not fit into memory."""
        return entries_for(self.artifact)

    def graph(self, samples: Sequence[Sample], reference: ir.Model | None) -> None:
        """What can be seen on the graph alone: validity, legality, dispatch, sparsity. Engines are built for the first
        sample; weights that `reference` has with a pattern of zeros must have it in the artifact."""
        self.step("validity", "checking the graph", self.validity)
        self.step("legality", "checking the target's rules", lambda: prove_legality(self.model, self.target))
        shapes = {name: array.shape for sample in samples[:1] for name, array in sample.items()}
        self.step("dispatch", "looking at what the runtime executes", lambda: self.dispatch(shapes))
        self.sparsity(reference)
        reasons = {record.node: record.reason for record in self.report.kept_float}
        self.report.placement = placed_nodes(self.model, self.units, reasons)
        self.report.coded = coded_weights(self.model)

    def against(
        self, float_model: Path, samples: Sequence[Sample], metric: Metric | None, edited: Path | None = None
    ) -> None:
        """Numbers and speed against the float model. Numbers are those of the edited one where passes changed the
        function on purpose: that is what the artifact has to keep; the edit has its price beside it."""
        obstacle = self.not_here() or ("" if samples else "no samples to compare on")
        if obstacle:
            self.add(Proof(name="numerics", passed=None, detail=obstacle))
        else:
            kept = edited or float_model
            self.step("numerics", "comparing with the float model", lambda: self.numerics(kept, samples))
            if edited is not None:
                self.price(float_model, edited, samples, metric)
        if metric is not None and self.not_here():
            self.add(Proof(name="metric", passed=None, detail=self.not_here()))
        elif metric is not None:
            self.step("metric", "measuring with your metric", lambda: self.metric(metric, float_model))
        original = ir.load(float_model)
        self.report.tensors = group_bytes(original, self.model)
        if self.plan is not None:
            self.report.weights = worst_histograms(self.unquantized or original, self.plan, self.report.layers)
        if samples:
            self.step("speed", "timing", lambda: self.speed(float_model, samples[0]))

    def step(self, name: str, what: str, work: Callable[[], Proof]) -> None:
        """Make one proof; one that breaks down is a failed proof, since an artifact is there to be reported on.

        Where memory runs out none was made: that says nothing about the artifact."""
        self.progress.start(what, None)
        try:
            proof = work()
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            if ran_out(error):
                detail = f"not made: there is too little memory, {free_bytes() >> 20} MiB are free"
                proof = Proof(name=name, passed=None, detail=detail)
            elif isinstance(error, QCompileError):
                proof = Proof(name=name, passed=False, detail=str(error))
            else:
                proof = Proof(name=name, passed=False, detail=f"broke down: {type(error).__name__}: {first}")
        finally:
            self.progress.finish()
        self.add(proof)

    def add(self, proof: Proof) -> None:
        self.report.proofs.append(proof)

    def sparsity(self, reference: ir.Model | None) -> None:
        """A proof where any weight of the float model has a pattern of zeros."""
        patterns = layer_patterns(reference) if reference is not None else {}
        if patterns:
            found = self.report
            work = partial(prove_sparsity, self.model, patterns, self.units, self.target, found.units, found.kernels)
            self.step("sparsity", "counting zeros", work)

    def validity(self) -> Proof:
        import onnx

        try:
            onnx.checker.check_model(str(self.artifact), full_check=True)
        except Exception as error:
            return Proof(
                name="validity", passed=False, detail=f"the ONNX checker: {str(error).strip().splitlines()[0]}"
            )
        return Proof(name="validity", passed=True, detail="the ONNX checker accepts the artifact")

    def dispatch(self, shapes: Mapping[str, Sequence[int]]) -> Proof:
        found = prove_dispatch(self.artifact, self.target, self.plan, shapes)
        self.report.units, self.report.kept_float = found.units, found.kept_float
        kernels = choose(self.artifact, CPU if self.missing else self.provider)
        self.report.kernels = str(kernels) if kernels.operators else ""
        return found.proof

    def not_here(self) -> str:
        """Why samples cannot be run through the artifact on this machine, empty when they can."""
        if any(value.dtype is ir.DataType.FLOAT8E4M3FN for value in self.model.graph.inputs):
            return "its FP8 inputs cannot be made from numpy arrays, which samples are"
        values = (value for node in nodes(self.model) for value in node.outputs)
        if self.missing and any(value.dtype is ir.DataType.BFLOAT16 for value in values):
            return f"the CPU provider has no bfloat16, and {self.missing}"
        operator = not_on_the_cpu(self.model) if self.missing else ""
        if operator:
            return f"the CPU provider has no {operator}, and {self.missing}"
        return ""

    def runner(self, model: Path) -> Runner:
        """A runner on the target's provider, or on the CPU where that does not load."""
        provider = CPU if self.missing else self.provider
        return runner(model, provider, session_entries(self.provider))

    def numerics(self, float_model: Path, samples: Sequence[Sample]) -> Proof:
        expected: list[Mapping[str, Any]] = []
        self.report.outputs, proof = self.compare(float_model, samples, expected)
        state = self.unquantized
        reference = Reference.of_state(state) if state is not None else Reference.of_file(float_model)
        entries = session_entries(self.provider) | self.unpacked
        some = samples if fit(float_model) else samples[:_FEW]
        self.report.layers, skipped = measure_layers(
            reference, self.artifact, self.units, some, self.progress, entries, self.layers_on
        )
        if len(some) < len(samples):
            proof = proof.model_copy(update={"detail": f"{proof.detail}; layers measured on {len(some)} samples"})
        if self.unpacked:
            detail = f"{proof.detail}; run without packed weights, for which there is no memory"
            proof = proof.model_copy(update={"detail": detail})
        elif proof.passed is not None:
            self.gains(reference, samples, expected)
        if skipped:
            proof = proof.model_copy(update={"detail": f"{proof.detail}; layers not measured: {skipped}"})
        if edit := self.report.edit:
            detail = f"{proof.detail}; against the float model as edited by {', '.join(edit.passes)}"
            proof = proof.model_copy(update={"detail": detail})
        return proof

    def price(self, float_model: Path, edited: Path, samples: Sequence[Sample], metric: Metric | None) -> None:
        """What the edit changed, in float. No proof: it was wanted, and the user's metric judges the artifact."""
        assert self.report.edit is not None
        self.progress.start("measuring what the edit changed", None)
        try:
            self.report.edit.outputs, _ = compare_outputs(self.runner(float_model), self.runner(edited), samples)
            if metric is not None:
                self.report.edit.metric = measure(metric, self.runner(edited), "edited")
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.report.notices.append(f"what the edit changed was not measured: {first}")
        finally:
            self.progress.finish()

    def compare(
        self, float_model: Path, samples: Sequence[Sample], expected: list[Mapping[str, Any]]
    ) -> tuple[list[OutputNoise], Proof]:
        """The outputs of both models; what the float one gives for the first samples is put into `expected`."""
        run = self.runner(float_model)

        def exact(sample: Sample) -> Mapping[str, Any]:
            found = run(sample)
            if len(expected) < SAMPLES:
                expected.append(found)
            return found

        return compare_outputs(exact, self.runner(self.artifact), samples)

    def gains(self, reference: Reference, samples: Sequence[Sample], expected: Sequence[Mapping[str, Any]]) -> None:
        """Advice, not a proof: what cannot be measured is left out."""
        try:
            self.report.float_gains = measure_gains(
                reference,
                self.artifact,
                self.units,
                self.report.layers,
                samples,
                expected,
                self.plan,
                self.progress,
                session_entries(self.provider) | self.unpacked,
                self.layers_on,
            )
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.report.notices.append(f"what float layers would buy was not measured: {first}")

    def metric(self, metric: Metric, float_model: Path) -> Proof:
        if self.report.metric_float is None:
            self.report.metric_float = measure(metric, self.runner(float_model), "float")
        self.report.metric_compiled, proof = prove_metric(metric, self.report.metric_float, self.runner(self.artifact))
        return proof

    def speed(self, float_model: Path, sample: Sample) -> Proof:
        if self.missing:
            return Proof(name="speed", passed=None, detail=self.missing)
        if obstacle := self.not_here():
            return Proof(name="speed", passed=None, detail=obstacle)
        if not fit(float_model, self.artifact):
            detail = f"not timed: both models do not fit into memory, of which {free_bytes() >> 20} MiB are free"
            return Proof(name="speed", passed=None, detail=detail)
        self.report.speed, proof = prove_speed(float_model, self.artifact, sample, self.provider, _TIMED)
        return proof
