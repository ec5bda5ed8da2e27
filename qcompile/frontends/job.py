"""What compiling and calibrating have in common: a model, a recipe and samples, checked, then passes that run.

A job that is interrupted leaves checkpoints beside its output; one that ends removes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.compiler.artifact import model_bytes
from qcompile.compiler.calibration_table import SUFFIX, remove_checkpoint
from qcompile.compiler.context import CompileContext, Metric, Progress, SilentProgress
from qcompile.compiler.inputs import model_inputs
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.report import PassRecord
from qcompile.compiler.targets import target_named
from qcompile.compiler.walk_checkpoint import remove_walk_checkpoints, walk_checkpoints
from qcompile.errors import UsageError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.frontends.calibration_data import Calibration, open_samples, open_table, split_held_out
from qcompile.frontends.model_checks import check_runs
from qcompile.frontends.model_file import load_float_model
from qcompile.passes.quantize.autotune import Autotune
from qcompile.passes.quantize.placing import Placing
from qcompile.runtime.calibration import calibration_provider
from qcompile.runtime.device import Device


class Job:
    """One model under one recipe.

    Attributes:
        source: the float model.
        destination: what the job writes.
        passes: the recipe's passes with their options.
        context: what the passes share.

    Raises:
        RecipeError: an unknown recipe or option.
        TargetError: an unknown target.
    """

    def __init__(
        self,
        model: str | Path,
        recipe: str | Path | Recipe,
        overrides: Sequence[str],
        target: str,
        output: str | Path | None,
        suffix: str,
        seed: int,
        resume: bool,
        progress: Progress | None,
        metric: Metric | None = None,
        device: str = "cpu",
        autotune: bool = False,
        tuning: str | Path | None = None,
    ) -> None:
        found = find_recipe(recipe)
        if autotune or tuning is not None:
            found = autotuned(found)
        self.source, self.recipe = Path(model), found.with_overrides(overrides)
        self.passes = self.recipe.passes()
        beside = self.source.with_name(f"{self.source.stem}.{self.recipe.name}{suffix}")
        self.destination = Path(output) if output is not None else beside
        self.context = CompileContext(
            target=target_named(target),
            float_model=self.source,
            seed=seed,
            device=Device.named(device),
            progress=progress or SilentProgress(),
            checkpoint=checkpoint_of(self.destination),
            resume=resume,
            metric=metric,
            tuning=Path(tuning) if tuning is not None else None,
        )

    @property
    def provider(self) -> str:
        """Where the float model runs."""
        return calibration_provider(self.context.float_providers)

    def load(self) -> tuple[ir.Model, int]:
        """The model, and its size in bytes with its external data."""
        self._meet_checkpoints()
        return load_float_model(self.source), model_bytes(self.source)

    def open_data(self, graph: ir.Model, calibration: Calibration | None) -> None:
        """Check that the model runs, and all samples; set some aside. Refuse to go on without any where the recipe
        needs them."""
        context = self.context
        check_runs(graph, self.source, self.provider)
        if calibration is None:
            needed = any(p.phase is Phase.ANALYZE or p.needs_samples for p in self.passes)
            if needed and not any(Fact.SAMPLES in p.provides for p in self.passes):
                zero_shot = "--recipe int8-zero-shot makes some from what the model itself knows, "
                raise UsageError(
                    f"recipe '{self.recipe.name}' needs calibration data",
                    hint="give representative inputs with --calib DATA, for a language model a text; without any, "
                    f"{'' if any(p.changes_function for p in self.passes) else zero_shot}--calib synthetic makes some "
                    "from noise, whose accuracy means nothing",
                )
            return
        if isinstance(calibration, str | Path) and Path(calibration).suffix == SUFFIX:
            context.calibration, context.held_out = open_table(Path(calibration), model_inputs(graph))
            return
        source = open_samples(calibration, graph, self.source, seed=context.seed, progress=context.progress)
        context.calibration, context.held_out, apart = split_held_out(source)
        if not apart and not source.synthetic:
            context.notice(
                f"samples are few ({len(source)}): the numeric proofs share them with calibration, "
                "from 32 on they do not"
            )

    def run(self, graph: ir.Model, last: Pass | None = None) -> list[PassRecord]:
        """Run the passes, up to and with `last`."""
        context, progress = self.context, self.context.progress
        progress.start("Compiling" if last is None else "Calibrating", len(self.passes))
        try:
            return run_pipeline(self.passes, graph, context, lambda done, model: progress.advance(), last)
        except KeyboardInterrupt as stop:
            if context.checkpoint and (context.checkpoint.exists() or walk_checkpoints(context.checkpoint)):
                stop.add_note("nothing was written; the same command with --resume goes on where it stopped.")
            raise
        finally:
            progress.finish()

    def forget_checkpoints(self) -> None:
        """Remove what an interruption would have gone on from."""
        remove_checkpoint(checkpoint_of(self.destination))
        remove_walk_checkpoints(checkpoint_of(self.destination))

    def _meet_checkpoints(self) -> None:
        """Say so where there is nothing to go on from; without --resume, what an interrupted run left goes away."""
        path = checkpoint_of(self.destination)
        if not self.context.resume:
            remove_walk_checkpoints(path)
        elif not path.exists() and not walk_checkpoints(path):
            self.context.notice("there is no checkpoint of an interrupted run: it started over")


def autotuned(recipe: Recipe) -> Recipe:
    """`recipe` with autotune in front of the first pass that places by time.

    Raises:
        UsageError: it has none.
    """
    if any(isinstance(p, Autotune) for p in recipe.passes()):
        return recipe
    place = next((i for i, p in enumerate(recipe.passes()) if isinstance(p, Placing)), None)
    if place is None:
        raise UsageError(
            f"recipe '{recipe.name}' places nothing by its time: there is nothing to tune",
            hint="autotuning is for recipes with place-int8, place-dynamic or place-weights",
        )
    steps = (*recipe.steps[:place], Step(name=Autotune.name), *recipe.steps[place:])
    return recipe.model_copy(update={"steps": steps})


def checkpoint_of(output: Path) -> Path:
    """Where an interrupted run that writes `output` leaves its statistics."""
    return output.with_name(output.name + ".checkpoint")
