"""LoRA adapters from one end to the other: merged into a model, or in files beside it that sessions switch between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.compiler.artifact import Artifact, check_output, write_model, writing
from qcompile.compiler.context import Progress
from qcompile.compiler.lora.adapter import CONFIG, read_adapter
from qcompile.compiler.lora.names import renamed
from qcompile.compiler.lora.ports import DOWN, UP, check_low_rank, modules_of, values_for
from qcompile.compiler.passes import Phase
from qcompile.compiler.reading import read_structure
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.report import Report
from qcompile.errors import ModelError, UsageError
from qcompile.frontends.api import compile
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.frontends.job import Job
from qcompile.frontends.merge_codes import merge_into_codes
from qcompile.frontends.model_checks import check_not_quantized
from qcompile.frontends.versions import versions
from qcompile.passes.lower.recoding import writable_places
from qcompile.passes.prepare.lora_inputs import LoraInputs
from qcompile.passes.prepare.merge_linear import MergeLinear
from qcompile.passes.prepare.merge_lora import MergeLora
from qcompile.passes.transform.loftq import Loftq
from qcompile.runtime.adapters import SUFFIX, write_adapter

_BEHIND = ("infer-shapes", "fold-constants")
"""Passes that find the weights which an adapter goes to; behind them, layers still have the names of their modules."""


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Attributes:
        model: the model that takes the adapters.
        compiled: how it was compiled, None where it took adapters already.
        adapters: one file for each.
    """

    model: Path
    compiled: Artifact | None
    adapters: tuple[Path, ...]


@dataclass(frozen=True)
class Started:
    """A base and the adapter that its fine-tuning starts from."""

    base: Path
    adapter: Path
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """A model with an adapter in its weights.

    Attributes:
        report: of a float model; None where codes were written anew.
        notices: what there is to say.
    """

    model: Path
    report: Report | None
    notices: tuple[str, ...]


def merge(
    model: str | Path,
    adapter: str | Path,
    output: str | Path | None = None,
    *,
    names: Sequence[str] = (),
    overwrite: bool = False,
    **options: Any,
) -> Merged:
    """Merge a LoRA adapter into the weights of a model.

    Args:
        model: the model that the adapter was trained on, or an artifact made of it, whose weights are then rounded
            anew, in the format that they have.
        adapter: the folder that PEFT wrote.
        output: where to write; left out, MODEL.ADAPTER.onnx beside the model.
        names: which module is which layer where names differ, "model.layers.{}.self_attn.q_proj=blk.{}.attn_q".
        options: of `compile`, for a float model, which compiles like any other when it is merged.

    Raises:
        QCompileError: what is wrong, where, and what to do; modules and tensors that do not fit are named.
    """
    source = Path(model)
    destination = Path(output or source.with_name(f"{source.stem}.{Path(adapter).resolve().name}.onnx"))
    try:
        check_not_quantized(read_structure(source), source)
    except ModelError:
        [read] = renamed([read_adapter(Path(adapter))], names)
        notices = merge_into_codes(source, read, destination, overwrite)
        return Merged(destination, None, tuple(notices))
    recipe = _with_options(find_recipe("lora-merge"), MergeLora.name, {"adapter": str(adapter), "names": list(names)})
    made = compile(source, recipe, output=destination, overwrite=overwrite, **options)
    return Merged(made.path, made.report, tuple(made.report.notices))


def export(
    model: str | Path,
    adapters: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    names: Sequence[str] = (),
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Write adapters in ONNX Runtime's format, and the model that takes them as inputs, if `model` does not.

    Args:
        model: a float model, or one with inputs for adapters, for which more are to be written.
        adapters: folders that PEFT wrote.
        output: the model to write; left out, MODEL.RECIPE.onnx beside the model. Adapters go beside it, under the names
            of their folders.
        recipe: how the base is compiled; left out, it stays float. With `nf4` the result is QLoRA's form.
        names: as in `merge`; the inputs of the model are called after its layers.
        options: of `compile`.

    Raises:
        QCompileError: what is wrong, where, and what to do; modules that do not fit are named.
    """
    source, made = Path(model), None
    read = renamed([read_adapter(Path(folder)) for folder in adapters], names)
    for adapter in read:
        check_low_rank(adapter)
    taking, beside = source, Path(output).parent if output is not None else source.parent
    files = [beside / f"{adapter.name}{SUFFIX}" for adapter in read]
    if twice := {file.name for file in files if files.count(file) > 1}:
        raise UsageError(f"two adapters would be written to {min(twice)}", hint="rename one of their folders")
    for file in files:
        check_output(file, overwrite)
    if not modules_of(_inputs(source)):
        compiled = _with_adapters(find_recipe(recipe or LoraInputs.name), [str(folder) for folder in adapters], names)
        made = compile(source, compiled, output=output, overwrite=overwrite, **options)
        taking = made.path
    elif recipe is not None or output is not None:
        raise UsageError("the model takes adapters already: it is not compiled again", where=str(source))
    inputs = read_structure(taking).graph.inputs
    for file, values in [(file, values_for(adapter, inputs)) for file, adapter in zip(files, read, strict=True)]:
        with writing(file):
            write_adapter(file, values)
    return Exported(taking, made, tuple(files))


def init(
    model: str | Path,
    adapter: str | Path,
    output: str | Path | None = None,
    *,
    recipe: str | Path | Recipe = "nf4",
    rank: int = 16,
    names: Sequence[str] = (),
    target: str = "cpu",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Started:
    """Write where the fine-tuning of a quantized base starts: an adapter that makes good what its codes miss (LoftQ).

    Args:
        adapter: the folder to write it to, as PEFT reads it.
        output: the base to write, in float: the weights that `recipe` rounds to the codes the adapter was made for;
            left out, MODEL.loftq.onnx beside the model.
        recipe: what the base will be compiled with: `export(base, [tuned], recipe=recipe)`.
        rank: of the adapter.
        names: as in `merge`; the adapter is written with the names of the modules.

    Raises:
        QCompileError: what is wrong, where, and what to do.
    """
    start = find_recipe(recipe)
    steps = [step for step in start.steps if step.name != MergeLinear.name]
    quantize = [i for i, p in enumerate(_recipe_of(start, steps).passes()) if p.phase is Phase.QUANTIZE]
    if not quantize:
        raise UsageError(f"recipe '{start.name}' quantizes nothing", hint="name the one that the base is compiled with")
    own = Step(name=Loftq.name, options={"adapter": str(adapter), "rank": rank, "names": list(names)})
    whole = _recipe_of(start, [*steps[: quantize[0]], own, *steps[quantize[0] :]], Loftq.name)
    job = Job(model, whole, overrides, target, output, ".onnx", 0, False, progress)
    destination = job.destination if output is not None else job.source.with_name(f"{job.source.stem}.loftq.onnx")
    check_output(destination, overwrite)
    graph, _ = job.load()
    job.open_data(graph, None)
    job.run(graph, next(p for p in job.passes if isinstance(p, Loftq)))
    write_model(graph, destination, {"float": True, "versions": versions()}, overwrite)
    return Started(destination, Path(adapter), tuple(job.context.notices))


def _recipe_of(recipe: Recipe, steps: Sequence[Step], suffix: str = "") -> Recipe:
    name = f"{recipe.name}.{suffix}" if suffix else recipe.name
    return recipe.model_copy(update={"name": name, "steps": tuple(steps)})


def _with_adapters(recipe: Recipe, adapters: Sequence[str], names: Sequence[str]) -> Recipe:
    """`recipe` with inputs for the layers that `adapters` were trained for."""
    options = {"adapters": list(adapters), "names": list(names)}
    if any(step.name == LoraInputs.name for step in recipe.steps):
        return _with_options(recipe, LoraInputs.name, options)
    prepared = [i for i, p in enumerate(recipe.passes(), 1) if p.phase is Phase.PREPARE and p.name in _BEHIND]
    at = max(prepared, default=0)
    steps = (*recipe.steps[:at], Step(name=LoraInputs.name, options=options), *recipe.steps[at:])
    return _recipe_of(recipe, steps, LoraInputs.name)


def _with_options(recipe: Recipe, name: str, options: Mapping[str, Any]) -> Recipe:
    steps = [s.model_copy(update={"options": {**s.options, **options}}) if s.name == name else s for s in recipe.steps]
    return recipe.model_copy(update={"steps": tuple(steps)})


def _inputs(path: Path) -> list[str]:
    return [str(value.name) for value in read_structure(path).graph.inputs]


@dataclass(frozen=True)
class Layer:
    """One line of a list: a layer that an adapter changes or could change.

    Attributes:
        rank: of its update, or of no adapter yet.
        shape: [N, K] and the like.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None = None
    scale: float | None = None


def layers(path: str | Path) -> list[Layer]:
    """What adapters change: the modules of an adapter (a folder), the inputs of a model that takes adapters, or else
    the layers of a model that could."""
    given = Path(path)
    if given.is_dir() or given.name == CONFIG:
        adapter = read_adapter(given if given.is_dir() else given.parent)
        updates = adapter.updates.values()
        found = [Layer(update.module, update.shape, update.rank, update.scale) for update in updates]
        return found + [Layer(name, array.shape) for name, array in adapter.trained.items()]
    model = read_structure(given)
    inputs = {str(value.name): value for value in model.graph.inputs}
    if modules := modules_of(list(inputs)):
        return [Layer(module, _shape(inputs[module + DOWN], inputs[module + UP])) for module in modules]
    return [Layer(place.node.name or str(place.weight.name), place.shape) for place in writable_places(model)]


def _shape(down: ir.Value, up: ir.Value) -> tuple[int, ...]:
    """The shape of the weight that A and B belong to, the rank left out of theirs."""
    columns, rows = (tuple(d for d in value.shape or () if isinstance(d, int)) for value in (down, up))
    return *rows[:1], *columns
