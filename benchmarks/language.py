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
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cell import digest_of, in_process
from benchmarks.language_forms import FLOAT, WINDOW, WINDOWS, Form, forms, write_data
from benchmarks.record import RESULTS, commit, save
from benchmarks.timing import ROUNDS, best_runs
from benchmarks.weight_bits import stored_bytes
from qcompile.compiler.artifact import data_file
from qcompile.runtime.language_model import LanguageModel
from qcompile.runtime.session import Session
from tests.zoo import ALL_MODELS
from tests.zoo.cache import cache
from tests.zoo.model import Array, Sample
from tests.zoo.smollm2 import FOR_CALIBRATION, SmolLM2, tokenizer, wikitext
from tests.zoo.text import news_articles

MODELS = ("smollm2-135m-permuted", "smollm2-135m")
COMPILED = ("int4-gptq", "llm-compressor GPTQ, block 32", "int4-awq", "llm-compressor AWQ, block 32")
_THREADS = (1, 2)
_JUDGED = {"window": 512, "windows": 24}
_ARTICLES_LEFT_OUT = 20_000
"""Characters at the beginning of WikiText-2: an article with more <unk> than words."""
Row = dict[str, Any]


def measure_accuracy(name: str, chosen: list[Form]) -> None:
    """Bring size and answers of `chosen` up to date."""
    rows, base = stored(name), stored_bytes(ALL_MODELS[name]().path())
    for form in chosen:
        file = made(name, form)
        known = rows.get(form.name, {})
        if "error" in file:
            rows[form.name] = {"form": form.name, "kind": form.kind, "commit": commit(), "error": file["error"]}
        elif (known.get("artifact"), known.get("judged")) != (file["artifact"], _judged_on()) or "answers" not in known:
            rows[form.name] = _row(form, file) | {"bits": _bits(form, Path(file["file"]), base.layers)}
            answers = in_process("benchmarks.language", "judge", name, file["file"])
            rows[form.name] |= answers if "error" in answers else {"answers": answers, "judged": _judged_on()}
        _save(name, rows)
        print(name, rows[form.name], flush=True)


def measure_speed(name: str, chosen: list[Form]) -> None:
    """Rows get {"latency": {sample: {threads: ms}}}; float is timed beside them each time."""
    rows, model = stored(name), ALL_MODELS[name]()
    files = {FLOAT: model.path()}
    files |= {f.name: _file(name, f) for f in chosen if f.timed and "answers" in rows.get(f.name, {})}
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
    rows = stored(name)
    for form in chosen:
        file = made(name, form, fresh=True)
        if "error" not in file and form.name in rows:
            rows[form.name]["compiling"] = {key: file.get(key) for key in ("seconds", "peak_mib")}
            _save(name, rows)
        print(form.name, file, flush=True)


def stored(name: str) -> dict[str, Row]:
    """The rows measured so far, by form."""
    file = RESULTS / "language" / f"{name}.json"
    if not file.is_file():
        return {}
    return {row["form"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}


def made(name: str, form: Form, fresh: bool = False) -> Row:
    """The file of one form: {"file", "artifact", "bytes", "seconds", "peak_mib"}, or {"error"}."""
    file, data = _file(name, form), _data()
    record, digest = file.with_name("made.json"), hashlib.sha256()
    for part in (form.stamp(), digest_of(ALL_MODELS[name]().path()), digest_of(data / "windows.npy")):
        digest.update(part.encode())
    if record.is_file() and not fresh:
        known: Row = json.loads(record.read_text(encoding="utf-8"))
        if known["key"] == digest.hexdigest() and ("error" in known or file.is_file()):
            return known
    record.unlink(missing_ok=True)
    known = {"key": digest.hexdigest()} | in_process("benchmarks.language", "make", name, form.name, str(file))
    if "error" not in known:
        parts = [part for part in (file, data_file(file)) if part.is_file()]
        digests = "".join(map(digest_of, parts))
        known |= {"file": str(file), "artifact": digests, "bytes": sum(part.stat().st_size for part in parts)}
    record.write_text(json.dumps(known), encoding="utf-8")
    return known


def _file(name: str, form: Form) -> Path:
    folder = cache() / "benchmarks" / "language" / name / form.name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "model.onnx"


def _data() -> Path:
    folder = cache() / "benchmarks" / "language" / "data"
    return write_data(folder, tokenizer(), "\n".join(news_articles()[:FOR_CALIBRATION]))


def _row(form: Form, file: Row) -> Row:
    return {
        "form": form.name,
        "kind": form.kind,
        "commit": commit(),
        "artifact": file["artifact"],
        "bytes": file["bytes"],
    }


def _bits(form: Form, file: Path, float_bytes: int) -> dict[str, float]:
    found, head = stored_bytes(file), SmolLM2.vocabulary * SmolLM2.width
    norms = float_bytes - 4 * SmolLM2.linear_weights  # in float in every form
    return {
        "layers": form.bits or 8 * (found.layers - norms) / SmolLM2.linear_weights,
        "head": 8 * found.head / head,
    }


def _save(name: str, rows: dict[str, Row]) -> None:
    about = {
        "model": name,
        "calibration": f"{WINDOWS} windows of {WINDOW} tokens of news",
        "rounds": ROUNDS,
    }
    save("language", [rows[form] for form in forms() if form in rows], about, f"language/{name}")


def _texts() -> dict[str, str]:
    news = {"Lee news": "\n".join(news_articles()[FOR_CALIBRATION:])}
    return {"WikiText-2": wikitext()[_ARTICLES_LEFT_OUT:]} | news if wikitext() else news


def _judged_on() -> str:
    return f"{_JUDGED['windows']} windows of {_JUDGED['window']} tokens each of {' and '.join(_texts())}"


def _make(name: str, form: str, out: str) -> Row:
    target = Path(out)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # tools leave files beside their output
        unfinished = Path(folder) / target.name
        figures = forms()[form].make(ALL_MODELS[name]().path(), _data(), unfinished)
        data_file(target).unlink(missing_ok=True)
        if data_file(unfinished).is_file():
            data_file(unfinished).replace(data_file(target))
        unfinished.replace(target)
    return dict(figures)


def _judge(name: str, file: str) -> Row:
    import qcompile

    found: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, words in _texts().items():
            path = Path(folder) / "text.txt"
            path.write_text(words, encoding="utf-8")
            text = qcompile.Text(path, _data() / "tokenizer.json", **_JUDGED)
            float_file = ALL_MODELS[name]().path()
            reference = None if found or float_file.samefile(file) else float_file  # the first text is enough
            seen = asdict(qcompile.evaluate(file, text, reference=reference))
            kept = ("perplexity", "agreement", "divergence", "tokens")
            found[title] = {key: seen[key] for key in kept if seen[key] is not None}
    return found


def _in_child(task: str, *arguments: str) -> None:
    try:
        found = _make(*arguments) if task == "make" else _judge(*arguments)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]}
    print(json.dumps(found))


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
        _in_child(*sys.argv[1:])
    else:
        main()
