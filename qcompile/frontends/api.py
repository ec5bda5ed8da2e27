"""The main job as a function: a float model and a recipe in, a compiled and proved model out."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.compiler.artifact import Artifact, check_output, data_file, model_files, write_model, write_text
from qcompile.compiler.calibration_table import SUFFIX, CalibrationTable, TableSamples
from qcompile.compiler.context import CompileContext, Metric, Progress
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.recipe import Recipe
from qcompile.compiler.report import Report
from qcompile.errors import OutputError, ProofError, UsageError
from qcompile.frontends.calibration_data import Calibration
from qcompile.frontends.job import Job
from qcompile.frontends.samples.function import import_function
from qcompile.frontends.versions import versions

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.runtime.session import Session


def compile(
    model: str | Path,
    recipe: str | Path | Recipe = "int8-static",
    *,
    calibration: Calibration | None = None,
    target: str = "cpu",
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    report: str | Path | None = None,
    strict: bool = False,
    metric: str | Metric | None = None,
    seed: int = 0,
    device: str = "cpu",
    autotune: bool = False,
    tuning: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    prove: bool = True,
) -> Artifact:
    """Compile a float ONNX model and prove the result against it.

    Args:
        model: path of the float model.
        recipe: name of a packaged recipe, path of a recipe file, or a Recipe.
        calibration: representative inputs: a path as on the command line, a list of dicts of arrays,
            or a function that yields them. Held-out samples for the proofs are taken from them.
        target: "cpu", "cuda" or "tensorrt".
        output: where to write; left out, MODEL.RECIPE.onnx beside the model.
        overrides: changes of the recipe, each "pass.option=value".
        report: where to write the report as a page (.html) or as data (.json).
        strict: raise ProofError when a proof failed; the artifact is written all the same.
        metric: your own measure of quality, "module:function" or a function that gets a function from
            sample to outputs and returns a number, higher is better.
        seed: for everything random.
        device: "cpu" or "cuda": where calibration and methods that solve for weights run; "cuda" needs torch and a GPU.
        autotune: measure operations in float and in int8 on this machine, and place by these times in place of the
            target's table. They are kept in the user's cache.
        tuning: the same, with the times in this file: what it lacks is measured and added, where it is of this machine.
        overwrite: replace an existing output and an existing report.
        resume: go on from the checkpoint of an interrupted run.
        prove: False skips the proofs and the timing.

    Returns:
        The artifact's path and the report.

    Raises:
        QCompileError: what is wrong, where, and what to do. Nothing is left half-written.
    """
    page = _report_path(report, overwrite)
    measure = import_function(metric) if isinstance(metric, str) else metric
    job = Job(
        model, recipe, overrides, target, output, ".onnx", seed, resume, progress, measure, device, autotune, tuning
    )
    context, destination = job.context, job.destination
    graph, bytes_before = job.load()
    _check_destination(job.source, destination, overwrite, bytes_before)
    job.open_data(graph, calibration)
    if context.metric and prove:
        context.metric_float = _try_metric(context.metric, job.source, job.provider)
    records = job.run(graph)
    manifest = _manifest(job, graph)
    bytes_after = write_model(graph, destination, manifest, overwrite, context.progress)
    job.forget_checkpoints()
    data = context.calibration
    found = Report(
        model=str(job.source),
        artifact=str(destination),
        page=str(page) if page else "",
        recipe=job.recipe.name,
        target=context.target.name,
        versions=manifest["versions"],
        data=data.description if data else "none",
        synthetic_data=bool(data and data.synthetic),
        samples=len(data) if data else 0,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        passes=records,
    )
    context.report = found
    if prove:
        _prove(found, context, destination)
        if found.float_gains:
            found.float_gains.setting = _keep_float(job.passes, found.float_gains.proposed)
    found.notices = list(dict.fromkeys([*found.notices, *context.notices]))
    if page:
        _write_report(found, page)
    if strict and failures(found):
        raise ProofError(
            "; ".join(failures(found)),
            where=str(destination),
            hint="the artifact was written; the report says more",
        )
    return Artifact(destination, found)


def calibrate(
    model: str | Path,
    recipe: str | Path | Recipe = "int8-static",
    *,
    calibration: Calibration,
    target: str = "cpu",
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Keep what calibration observes in a file, which `compile` takes in place of the samples.

    Args:
        model, recipe, calibration, target, overrides, seed, overwrite, resume: as in `compile`.
        output: where to write; left out, MODEL.RECIPE.qcal beside the model.

    Returns:
        Where the calibration table lies. It serves this model with this recipe, or with another one that
        prepares the model in the same way and asks for no more.

    Raises:
        QCompileError: what is wrong, where, and what to do. Nothing is left half-written.
    """
    job = Job(model, recipe, overrides, target, output, SUFFIX, seed, resume, progress)
    name, context, destination = job.recipe.name, job.context, job.destination
    last = next((p for p in reversed(job.passes) if p.phase is Phase.ANALYZE), None)
    if last is None:
        raise UsageError(f"recipe '{name}' does not calibrate", hint="it needs no calibration table")
    if destination.suffix != SUFFIX:
        raise UsageError(f"a calibration table is a {SUFFIX} file", where=str(destination))
    check_output(destination, overwrite)
    graph, _ = job.load()
    job.open_data(graph, calibration)
    data = context.calibration
    if data is None or isinstance(data, TableSamples):
        raise UsageError("a calibration table is made from samples", hint="give them with --calib DATA")
    job.run(graph, last)
    made = context.calibrated or CalibrationTable()
    for run in made.runs.values():
        run.choose(context.target.activation)
    made.model, made.recipe, made.held_out = job.source.name, name, context.held_out
    made.description, made.digest = data.description, data.digest()
    made.samples, made.synthetic = len(data), data.synthetic
    made.save(destination)
    job.forget_checkpoints()
    return destination


def _try_metric(metric: Metric, model: Path, provider: str) -> float:
    """The metric of the float model: measured before the work begins, so that one that fails costs no time."""
    from qcompile.compiler.verification.metric import measure
    from qcompile.compiler.verification.noise import runner

    return measure(metric, runner(model, provider), "float")


def _prove(report: Report, context: CompileContext, artifact: Path) -> None:
    from qcompile.compiler.verification.prove import prove

    try:
        prove(report, context, artifact)
    except KeyboardInterrupt as stop:
        stop.add_note(f"{artifact} is written, but not proved.")
        raise


def _keep_float(passes: Sequence[Pass], names: Sequence[str]) -> str:
    """The option that leaves these nodes in float besides those that are already, as a shell wants it."""
    patterns = [glob.escape(name) for name in names]
    for placing in (p for p in passes if names and p.phase in (Phase.QUANTIZE, Phase.LOWER)):
        kept, layers = getattr(placing, "keep_float", None), getattr(placing, "layers", None)
        if kept is not None:
            option, value = "keep-float", [*kept, *patterns]
        elif layers is not None:
            said = [entry.model_dump(by_alias=True, exclude_defaults=True) for entry in layers]
            option, value = "layers", [*said, *({"name": pattern, "keep-float": True} for pattern in patterns)]
        else:
            continue
        return "--set " + shlex.quote(f"{placing.name}.{option}={json.dumps(value, ensure_ascii=False)}")
    return ""


def load(path: str | Path, providers: Sequence[str] | None = None, **options: Any) -> Session:
    """Open a model on the best provider there is; the options are those of `qcompile.Session`."""
    from qcompile.runtime.session import Session

    return Session(path, providers, **options)


def failures(report: Report) -> list[str]:
    """What `--strict` objects to: the proofs that failed."""
    return [f"{proof.name}: {proof.detail}" for proof in report.failed]


def _report_path(report: str | Path | None, overwrite: bool) -> Path | None:
    if report is None:
        return None
    path = Path(report)
    if path.suffix not in (".html", ".json"):
        raise UsageError(f"a report is an .html page or .json data, not '{path.suffix}'", where=str(path))
    check_output(path, overwrite)
    return path


def _check_destination(source: Path, destination: Path, overwrite: bool, source_bytes: int) -> None:
    if destination.exists() and destination.samefile(source):
        raise OutputError("the output is the model itself", where=str(destination), hint="choose another name with -o")
    if data_file(destination).resolve() in model_files(source):
        raise OutputError(
            f"weights would go to {data_file(destination).name}, which holds weights of the model",
            where=str(destination),
            hint="choose another name with -o",
        )
    check_output(destination, overwrite, source_bytes)


def _manifest(job: Job, graph: ir.Model) -> dict[str, Any]:
    data, target = job.context.calibration, job.context.target
    for provider, why in target.closed_ways(graph).items():
        others = " and ".join(target.provider_options(graph))
        job.context.notice(f"{provider} cannot run the artifact: {why}; {others} can")
    return {
        "recipe": {
            "name": job.recipe.name,
            "steps": [{p.name: p.model_dump(mode="json")} for p in job.passes],
        },
        "versions": versions(),
        **({} if any(p.phase in (Phase.QUANTIZE, Phase.LOWER) for p in job.passes) else {"float": True}),
        "target": target.name,
        "seed": job.context.seed,
        **({"times": measured.device} if (measured := job.context.measured) else {}),
        **({"edits": list(dict.fromkeys(job.context.edits))} if job.context.edits else {}),
        "data": {"digest": data.digest(), "samples": len(data), "synthetic": data.synthetic} if data else None,
        **({"provider_options": target.provider_options(graph)} if target.ways else {}),
    }


def _write_report(report: Report, path: Path) -> None:
    if path.suffix == ".json":
        write_text(report.model_dump_json(indent=2), path)
        return
    from qcompile.compiler.reporting.html import render

    write_text(render(report), path)
