"""Pruned models: accuracy, size and latency with 10, 25 and 50 % fewer operations, in float and in int8.

    python -m benchmarks.pruning [--models A,B] [--forms X,Y] [--no-timing] [--fresh]

Pruned forms are the recipe `prune-channels`, or `int8-static` with that pass in it, or `prune-blocks` in its place;
beside them stands the recipe `low-rank` with 20 and 30 % fewer weights in the layers. All are calibrated with the same
samples.
Rows lie in benchmarks/results/pruning/, a file for each model. A row is judged and timed again only when its file has
other bytes than the one that was measured, or with --fresh, so the table can be made in parts. Files are timed beside
the float model, in interleaved rounds: leave that to a quiet machine. `python -m benchmarks.tables` writes the table of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cell import digest_of, in_process
from benchmarks.record import RESULTS, commit, save
from benchmarks.timing import ROUNDS, best_runs
from benchmarks.variants import sources
from tests.zoo import ALL_MODELS
from tests.zoo.cache import cache
from tests.zoo.model import Sample, ZooModel, runner

if TYPE_CHECKING:
    from qcompile.compiler.recipe import Recipe

MODELS = ("all-minilm-l6-v2", "efficientnet-lite0")
SHARES = (10, 25, 50)
FLOAT = "float"
_THINS = ("prune-channels", "low-rank")
"""Steps of packaged recipes in whose place the pass of a form stands."""

_SAMPLES = {"all-minilm-l6-v2": 256}
"""Sentences for calibration: layers of 1536 inputs are refitted to their words. Pictures: all that are not judged."""
_THREADS = (1, 2)
Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One way to make a file.

    Attributes:
        base: the recipe that the pass stands in.
        options: of the pass; none where nothing is pruned.
        prunes: the name of the pass.
    """

    name: str
    base: str
    options: dict[str, Any] | None = None
    prunes: str = "prune-channels"


def forms() -> dict[str, Form]:
    """All of them, in the order of the table."""
    found = [Form("int8", "int8-static")]
    for share in SHARES:
        options = {"remove": share / 100}
        found.append(Form(f"{share} % less", "prune-channels", options))
        found.append(Form(f"{share} % less, taylor", "prune-channels", options | {"importance": "taylor"}))
        found.append(Form(f"{share} % less, int8", "int8-static", options))
    for share in SHARES[:2]:
        found.append(Form(f"{share} % less, blocks", "prune-channels", {"remove": share / 100}, "prune-blocks"))
    for share in (20, 30):
        found.append(Form(f"{share} % fewer weights, low rank", "low-rank", {"keep": 1 - share / 100}, "low-rank"))
    found.append(Form("25 % less time", "prune-channels", {"remove": 0.25, "budget": "latency"}))
    return {form.name: form for form in found}


def measure(model: ZooModel, chosen: list[Form], *, timing: bool, fresh: bool) -> None:
    """Bring the rows of `chosen` up to date."""
    rows = stored(model.name)
    rows.setdefault(
        FLOAT, {"form": FLOAT, "bytes": model.path().stat().st_size, "metric": model.metric(_run(model.path()))}
    )
    files = {}
    for form in chosen:
        file = _file(model, form)
        if fresh or _stamp(file) != _key(form):
            made = in_process("benchmarks.pruning", "--make", model.name, form.name)
            if "error" in made:
                rows[form.name] = {"form": form.name, "commit": commit(), **made}
                _save(model, rows)
                continue
        files[form.name], artifact = file, digest_of(file)
        if fresh or rows.get(form.name, {}).get("artifact") != artifact:
            rows[form.name] = {
                "form": form.name,
                "commit": commit(),
                "artifact": artifact,
                "bytes": file.stat().st_size,
            }
            rows[form.name] |= {"metric": model.metric(_run(file)), **json.loads(_record(file).read_text())["about"]}
        _save(model, rows)
        print("  ", {k: v for k, v in rows[form.name].items() if k != "artifact"}, flush=True)
    if timing:
        _time(model, files, rows, fresh)


def stored(model: str) -> dict[str, Row]:
    """The rows measured so far, by form."""
    file = RESULTS / "pruning" / f"{model}.json"
    if not file.is_file():
        return {}
    return {row["form"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}


def recipe_of(form: Form) -> Recipe:
    """Its base, with the pass of the form in the place of its own or in front of calibration."""
    from qcompile.compiler.recipe import Step
    from qcompile.frontends.builtin_recipes import find_recipe

    recipe = find_recipe(form.base)
    at, own = next((i, step) for i, step in enumerate(recipe.steps) if step.name in (*_THINS, "calibrate"))
    steps = [step for step in recipe.steps if step.name not in _THINS]
    if form.options is not None:
        options = own.options if own.name == form.prunes else {}
        steps.insert(at, Step(name=form.prunes, options=options | form.options))
    return recipe.model_copy(update={"steps": tuple(steps)})


def make(model: ZooModel, form: Form) -> Row:
    """Write the file of a form, and what the pass says of it."""
    import qcompile

    samples = model.calibration(_SAMPLES.get(model.name, model.calibration_count))
    file, start = _file(model, form), time.perf_counter()
    made = qcompile.compile(
        model.path(),
        recipe_of(form),
        calibration=samples,
        output=file,
        overwrite=True,
        prove=False,
    )
    said = [notice for notice in made.report.notices if notice.startswith(form.prunes)]
    about = {"seconds": time.perf_counter() - start, "said": said}
    _record(file).write_text(json.dumps({"key": _key(form), "about": about}), encoding="utf-8")
    return about


def _time(model: ZooModel, files: dict[str, Path], rows: dict[str, Row], fresh: bool) -> None:
    """Rows get {"latency": {threads: {"ms", "speedup"}}}."""
    wanted = [name for name in files if fresh or "latency" not in rows[name]]
    if not wanted:
        return
    sample: Sample = model.timing_sample()
    for threads in _THREADS:
        together = {FLOAT: model.path()} | {name: files[name] for name in wanted}
        best = best_runs({name: (file, sample) for name, file in together.items()}, threads)
        print("  ", f"{threads} threads", {name: round(ms, 3) for name, ms in best.items()}, flush=True)
        for name in together:
            cell = {"ms": best[name], "speedup": best[FLOAT] / best[name]}
            rows[name].setdefault("latency", {})[str(threads)] = cell
    _save(model, rows)


def _run(file: Path) -> Any:
    return runner(file, entries={"session.intra_op.allow_spinning": "0"})


def _file(model: ZooModel, form: Form) -> Path:
    folder = cache() / "benchmarks" / "pruning" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{form.name.replace(' % less', '').replace(', ', '-')}.onnx"


def _record(file: Path) -> Path:
    return file.with_suffix(".json")


def _stamp(file: Path) -> str | None:
    """What the file was made by; None where there is none."""
    if not (file.is_file() and _record(file).is_file()):
        return None
    return str(json.loads(_record(file).read_text(encoding="utf-8"))["key"])


def _key(form: Form) -> str:
    return f"{form} {sources()}"


def _save(model: ZooModel, rows: dict[str, Row]) -> None:
    about = {
        "model": model.name,
        "metric": model.metric_name,
        "data": model.data,
        "calibration": _SAMPLES.get(model.name, model.calibration_count),
        "rounds": ROUNDS,
    }
    save("pruning", [rows[n] for n in (FLOAT, *forms()) if n in rows], about, f"pruning/{model.name}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names of the zoo, with commas")
    parser.add_argument("--forms", help="as in the table, separated by semicolons; all if left out")
    parser.add_argument("--no-timing", action="store_true", help="leave out latency, as on a busy machine")
    parser.add_argument("--fresh", action="store_true", help="make and measure all of it again")
    parser.add_argument("--make", nargs=2, metavar=("MODEL", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        name, form = options.make
        print(json.dumps(make(ALL_MODELS[name](), forms()[form])))
        return
    chosen = [forms()[n] for n in options.forms.split(";")] if options.forms else list(forms().values())
    for name in options.models.split(","):
        print(ALL_MODELS[name].title, flush=True)
        measure(ALL_MODELS[name](), chosen, timing=not options.no_timing, fresh=options.fresh)


if __name__ == "__main__":
    main()
