"""The main job as a function: a float model and a recipe in, a compiled and proved model out."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.compiler.artifact import Artifact, check_output, model_bytes, write_model, write_text
from qcompile.compiler.calibration_table import SUFFIX, CalibrationTable, TableSamples, remove_checkpoint
from qcompile.compiler.context import CompileContext, Metric, Progress, SilentProgress
from qcompile.compiler.inputs import model_inputs, table_rows
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.recipe import Recipe
from qcompile.compiler.report import PassRecord, Report
from qcompile.compiler.targets import target_named
from qcompile.compiler.walk_checkpoint import remove_walk_checkpoints, walk_checkpoints
from qcompile.errors import OutputError, ProofError, UsageError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.frontends.calibration_data import Calibration, open_calibration, open_table, split_held_out
from qcompile.frontends.model_checks import check_runs
from qcompile.frontends.model_file import load_float_model
from qcompile.frontends.samples.function import import_function
from qcompile.frontends.versions import versions
from qcompile.runtime.calibration import calibration_provider

if TYPE_CHECKING:
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
        overwrite: replace an existing output and an existing report.
        resume: go on from the checkpoint of an interrupted run.
        prove: False skips the proofs and the timing.

    Returns:
        The artifact's path and the report.

    Raises:
        QCompileError: what is wrong, where, and what to do. Nothing is left half-written.
    """
    source, chosen = Path(model), find_recipe(recipe).with_overrides(overrides)
    passes = chosen.passes()
    destination = Path(output) if output is not None else source.with_name(f"{source.stem}.{chosen.name}.onnx")
    page = _report_path(report, overwrite)
    context = CompileContext(
        target=target_named(target),
        float_model=source,
        seed=seed,
        progress=progress or SilentProgress(),
        checkpoint=checkpoint_of(destination),
        resume=resume,
        metric=import_function(metric) if isinstance(metric, str) else metric,
    )
    _meet_checkpoints(context)
    graph = load_float_model(source)
    bytes_before = model_bytes(source)
    _check_destination(source, destination, overwrite, bytes_before)
    provider = calibration_provider(context.target.providers)
    check_runs(graph, source, provider)
    _open_data(context, calibration, graph, passes, chosen.name)
    if context.metric and prove:
        context.metric_float = _try_metric(context.metric, source, provider)
    records = _run(passes, graph, context)
    manifest = _manifest(chosen, passes, context)
    bytes_after = write_model(graph, destination, manifest, overwrite)
    remove_checkpoint(checkpoint_of(destination))
    remove_walk_checkpoints(checkpoint_of(destination))
    found = Report(
        model=str(source),
        artifact=str(destination),
        page=str(page) if page else "",
        recipe=chosen.name,
        target=context.target.name,
        versions=manifest["versions"],
        data=context.calibration.description if context.calibration else "none",
        synthetic_data=bool(context.calibration and context.calibration.synthetic),
        samples=len(context.calibration) if context.calibration else 0,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        passes=records,
    )
    context.report = found
    if prove:
        _prove(found, context, destination)
        if found.float_gains:
            found.float_gains.setting = _keep_float(passes, found.float_gains.proposed)
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
    source, chosen = Path(model), find_recipe(recipe).with_overrides(overrides)
    passes = chosen.passes()
    last = next((p for p in reversed(passes) if p.phase is Phase.ANALYZE), None)
    if last is None:
        raise UsageError(f"recipe '{chosen.name}' does not calibrate", hint="it needs no calibration table")
    destination = Path(output) if output is not None else source.with_name(f"{source.stem}.{chosen.name}{SUFFIX}")
    if destination.suffix != SUFFIX:
        raise UsageError(f"a calibration table is a {SUFFIX} file", where=str(destination))
    check_output(destination, overwrite)
    context = CompileContext(
        target=target_named(target),
        float_model=source,
        seed=seed,
        progress=progress or SilentProgress(),
        checkpoint=checkpoint_of(destination),
        resume=resume,
    )
    _meet_checkpoints(context)
    graph = load_float_model(source)
    check_runs(graph, source, calibration_provider(context.target.providers))
    _open_data(context, calibration, graph, passes, chosen.name)
    data = context.calibration
    if data is None or isinstance(data, TableSamples):
        raise UsageError("a calibration table is made from samples", hint="give them with --calib DATA")
    _run(passes, graph, context, last)
    made = context.calibrated or CalibrationTable()
    for run in made.runs.values():
        run.choose(context.target.activation)
    made.model, made.recipe, made.held_out = source.name, chosen.name, context.held_out
    made.description, made.digest, made.samples, made.synthetic = (
        data.description,
        data.digest(),
        len(data),
        data.synthetic,
    )
    made.save(destination)
    remove_checkpoint(checkpoint_of(destination))
    remove_walk_checkpoints(checkpoint_of(destination))
    return destination


def _try_metric(metric: Metric, model: Path, provider: str) -> float:
    """The metric of the float model: measured before the work begins, so that one that fails costs no time."""
    from qcompile.compiler.verification.metric import measure
    from qcompile.compiler.verification.noise import runner

    return measure(metric, runner(model, provider), "float")


def _run(
    passes: Sequence[Pass], graph: ir.Model, context: CompileContext, last: Pass | None = None
) -> list[PassRecord]:
    progress = context.progress
    progress.start("Compiling" if last is None else "Calibrating", len(passes))
    try:
        return run_pipeline(passes, graph, context, lambda done, model: progress.advance(), last)
    except KeyboardInterrupt as stop:
        if context.checkpoint and (context.checkpoint.exists() or walk_checkpoints(context.checkpoint)):
            stop.add_note("nothing was written; the same command with --resume goes on where it stopped.")
        raise
    finally:
        progress.finish()


def _prove(report: Report, context: CompileContext, artifact: Path) -> None:
    from qcompile.compiler.verification.prove import prove

    try:
        prove(report, context, artifact)
    except KeyboardInterrupt as stop:
        stop.add_note(f"{artifact} is written, but not proved.")
        raise


def _keep_float(passes: Sequence[Pass], names: Sequence[str]) -> str:
    """The option that leaves these nodes in float besides those that are already, as a shell wants it."""
    for placing in passes:
        patterns = getattr(placing, "keep_float", None)
        if patterns is not None and names:
            kept = json.dumps([*patterns, *map(glob.escape, names)], ensure_ascii=False)
            return "--set " + shlex.quote(f"{placing.name}.keep-float={kept}")
    return ""


def load(path: str | Path, providers: Sequence[str] | None = None, **options: Any) -> Session:
    """Open a model on the best provider there is; the options are those of `qcompile.Session`."""
    from qcompile.runtime.session import Session

    return Session(path, providers, **options)


def failures(report: Report) -> list[str]:
    """What `--strict` objects to: the proofs that failed."""
    return [f"{proof.name}: {proof.detail}" for proof in report.failed]


def checkpoint_of(output: Path) -> Path:
    """Where an interrupted run that writes `output` leaves its statistics."""
    return output.with_name(output.name + ".checkpoint")


def _meet_checkpoints(context: CompileContext) -> None:
    """Say so where there is nothing to go on from; without --resume, what an interrupted run left goes away."""
    path = context.checkpoint
    assert path is not None
    if not context.resume:
        remove_walk_checkpoints(path)
    elif not path.exists() and not walk_checkpoints(path):
        context.notice("there is no checkpoint of an interrupted run: it started over")


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
    check_output(destination, overwrite, source_bytes)


def _open_data(
    context: CompileContext, calibration: Calibration | None, graph: ir.Model, passes: Sequence[Pass], recipe: str
) -> None:
    """Check all samples and set some aside; refuse to go on without any where the recipe needs them."""
    if calibration is None:
        if any(p.phase is Phase.ANALYZE for p in passes) and not any(Fact.SAMPLES in p.provides for p in passes):
            raise UsageError(
                f"recipe '{recipe}' needs calibration data",
                hint="give representative inputs with --calib DATA; without any, --recipe int8-zero-shot makes some "
                "from what the model itself knows, --calib synthetic from noise, whose accuracy means nothing",
            )
        return
    if isinstance(calibration, str | Path) and Path(calibration).suffix == SUFFIX:
        context.calibration, context.held_out = open_table(Path(calibration), model_inputs(graph))
        return
    source = open_calibration(
        calibration, model_inputs(graph), seed=context.seed, rows=table_rows(graph), progress=context.progress
    )
    context.calibration, context.held_out, apart = split_held_out(source)
    if not apart and not source.synthetic:
        context.notice(
            f"samples are few ({len(source)}): the numeric proofs share them with calibration, from 32 on they do not"
        )


def _manifest(recipe: Recipe, passes: Sequence[Pass], context: CompileContext) -> dict[str, Any]:
    data = context.calibration
    return {
        "recipe": {
            "name": recipe.name,
            "steps": [{p.name: p.model_dump(mode="json")} for p in passes],
        },
        "versions": versions(),
        "target": context.target.name,
        "seed": context.seed,
        "data": {"digest": data.digest(), "samples": len(data), "synthetic": data.synthetic} if data else None,
    }


def _write_report(report: Report, path: Path) -> None:
    if path.suffix == ".json":
        write_text(report.model_dump_json(indent=2), path)
        return
    from qcompile.compiler.reporting.html import render

    write_text(render(report), path)
