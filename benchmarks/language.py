"""The table of language models: weight-only recipes beside ONNX Runtime's tool, llm-compressor and HQQ, on SmolLM2.

    python -m benchmarks.language --accuracy [--models A,B] [--forms X,Y]
    python -m benchmarks.language --speed [...]
    python -m benchmarks.language --compiling [...]

Three steps, since only the first may share the machine. `--accuracy` makes the files and judges them on texts that
calibration did not see: WikiText-2 where QCOMPILE_BENCH_DATA has it, and news. `--speed` times a prompt and one token
after it, all files in turns. `--compiling` makes files anew for their time and peak memory. Rows lie in
benchmarks/results/language/, a file for each model, and are measured again only when a file has other bytes, so the
table can be made in parts. The permuted copy is the honest one: the weights of the original lie on a 4-bit grid.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.language_cells import Cells
from benchmarks.language_forms import FLOAT, Form, forms
from benchmarks.timing import ROUNDS, best_runs
from benchmarks.weight_bits import stored_bytes
from qcompile.runtime.language_model import LanguageModel
from qcompile.runtime.session import Session
from tests.zoo import ALL_MODELS
from tests.zoo.model import Array, Sample
from tests.zoo.smollm2 import SmolLM2

MODELS = ("smollm2-135m-permuted", "smollm2-135m")
COMPILED = ("int4-gptq", "llm-compressor GPTQ, block 32", "int4-awq", "llm-compressor AWQ, block 32")
_THREADS = (1, 2)
CELLS = Cells("language", forms)
Row = dict[str, Any]


def measure_accuracy(name: str, chosen: list[Form]) -> None:
    """Bring size and answers of `chosen` up to date."""
    rows, base = CELLS.stored(name), stored_bytes(ALL_MODELS[name]().path())
    for form in chosen:
        row, new = CELLS.judged(name, form, rows.get(form.name, {}))
        rows[form.name] = row | {"bits": _bits(form, new, base.layers)} if new else row
        _save(name, rows)
        print(name, rows[form.name], flush=True)


def measure_speed(name: str, chosen: list[Form]) -> None:
    """Rows get {"latency": {sample: {threads: ms}}}; float is timed beside them each time."""
    rows, model = CELLS.stored(name), ALL_MODELS[name]()
    files = {FLOAT: model.path()}
    files |= {f.name: CELLS.file(name, f) for f in chosen if f.timed and "answers" in rows.get(f.name, {})}
    prompt, token = (sample["input_ids"][0] for sample in model.timing_samples().values())
    phases = {form: _phases(file, prompt, token) for form, file in files.items()}
    for label in phases[FLOAT]:
        for threads in _THREADS:
            best = best_runs({form: (files[form], phases[form][label]) for form in files}, threads)
            print(label, f"{threads} threads", {n: round(ms, 3) for n, ms in best.items()}, flush=True)
            for form, ms in best.items():
                rows[form].setdefault("latency", {}).setdefault(label, {})[str(threads)] = ms / best[FLOAT]
    _save(name, rows)


def _phases(file: Path, prompt: Array, token: Array) -> dict[str, Sample]:
    """A prompt, and a token after it, with the kind of cache that the file has."""
    model = LanguageModel(Session(file, spin=False))
    [(_, cache)] = model.read(prompt, len(prompt))
    return {"128 tokens": model.ports.feed(prompt, {}), "one token after 128": model.ports.feed(token, cache)}


def measure_compiling(name: str, chosen: list[Form]) -> None:
    """Rows get {"compiling": {"seconds", "peak_mib"}}."""
    rows = CELLS.stored(name)
    for form in chosen:
        file = CELLS.made(name, form, fresh=True)
        if "error" not in file and form.name in rows:
            rows[form.name]["compiling"] = {key: file.get(key) for key in ("seconds", "peak_mib")}
            _save(name, rows)
        print(form.name, file, flush=True)


def _bits(form: Form, file: Path, float_bytes: int) -> dict[str, float]:
    found, head = stored_bytes(file), SmolLM2.vocabulary * SmolLM2.width
    norms = float_bytes - 4 * SmolLM2.linear_weights  # in float in every form
    return {
        "layers": form.bits or 8 * (found.layers - norms) / SmolLM2.linear_weights,
        "head": 8 * found.head / head,
    }


def _save(name: str, rows: dict[str, Row]) -> None:
    CELLS.save(name, rows, rounds=ROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__.split("\n")[0])
    parser.add_argument("--accuracy", action="store_true", help="make the files and judge them")
    parser.add_argument("--speed", action="store_true", help="time them, on a quiet machine")
    parser.add_argument("--compiling", action="store_true", help=f"make files anew for time and memory: {COMPILED}")
    parser.add_argument("--models", default=",".join(MODELS), help="names of the zoo, with commas")
    parser.add_argument("--forms", help="as in the table, with semicolons; all if left out")
    options = parser.parse_args()
    chosen = [forms()[name] for name in options.forms.split(";")] if options.forms else list(forms().values())
    for name in options.models.split(","):
        if options.accuracy:
            measure_accuracy(name, chosen)
        if options.speed:
            measure_speed(name, chosen)
        if options.compiling:
            measure_compiling(name, [f for f in chosen if options.forms or f.name in COMPILED])


if __name__ == "__main__":
    if sys.argv[1:2] in (["make"], ["judge"]):
        CELLS.in_child(*sys.argv[1:])
    else:
        main()
