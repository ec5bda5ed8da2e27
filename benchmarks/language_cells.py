"""Forms of a decoder, each made and judged in processes of their own, by any benchmark of language models.

Files lie in the zoo's cache and are made again only when the model, the calibration data or what makes them has
changed. They are judged on texts that calibration did not see: WikiText-2 where QCOMPILE_BENCH_DATA has it, and news.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cell import digest_of, in_process
from benchmarks.language_forms import WINDOW, WINDOWS, Form, write_data
from benchmarks.record import RESULTS, commit, save
from qcompile.compiler.artifact import data_file
from tests.zoo import ALL_MODELS
from tests.zoo.cache import cache
from tests.zoo.smollm2 import FOR_CALIBRATION, tokenizer, wikitext
from tests.zoo.text import news_articles

_JUDGED = {"window": 512, "windows": 24}
_ARTICLES_LEFT_OUT = 20_000
"""Characters at the beginning of WikiText-2: an article with more <unk> than words."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """The cells of one table.

    Attributes:
        name: of the benchmark: module benchmarks.NAME, whose `make` and `judge` on the command line run `in_child`,
            and the folder of its results.
        forms: by name, in the order of the table.
    """

    name: str
    forms: Callable[[], Mapping[str, Form]]

    def stored(self, model: str) -> dict[str, Row]:
        """The rows measured so far, by form."""
        file = RESULTS / self.name / f"{model}.json"
        if not file.is_file():
            return {}
        return {row["form"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}

    def save(self, model: str, rows: Mapping[str, Row], **notes: Any) -> None:
        about = {"model": model, "calibration": f"{WINDOWS} windows of {WINDOW} tokens of news", **notes}
        save(self.name, [rows[form] for form in self.forms() if form in rows], about, f"{self.name}/{model}")

    def judged(self, model: str, form: Form, row: Row) -> tuple[Row, Path | None]:
        """`row` brought up to date, with size and answers, or the error; and the file if it is a new row."""
        file = self.made(model, form)
        if "error" in file:
            return {"form": form.name, "kind": form.kind, "commit": commit(), "error": file["error"]}, None
        if (row.get("artifact"), row.get("judged")) == (file["artifact"], judged_on()) and "answers" in row:
            return row, None
        row = {"form": form.name, "kind": form.kind, "commit": commit()}
        row |= {key: file[key] for key in ("artifact", "bytes")}
        answers = in_process(f"benchmarks.{self.name}", "judge", model, file["file"])
        row |= answers if "error" in answers else {"answers": answers, "judged": judged_on()}
        return row, Path(file["file"])

    def made(self, model: str, form: Form, fresh: bool = False) -> Row:
        """The file of one form: {"file", "artifact", "bytes", "seconds", "peak_mib"}, or {"error"}."""
        file, data = self.file(model, form), calibration_data()
        record, digest = file.with_name("made.json"), hashlib.sha256()
        for part in (form.stamp(), digest_of(ALL_MODELS[model]().path()), digest_of(data / "windows.npy")):
            digest.update(part.encode())
        if record.is_file() and not fresh:
            known: Row = json.loads(record.read_text(encoding="utf-8"))
            if known["key"] == digest.hexdigest() and ("error" in known or file.is_file()):
                return known
        record.unlink(missing_ok=True)
        known = {"key": digest.hexdigest()}
        known |= in_process(f"benchmarks.{self.name}", "make", model, form.name, str(file))
        if "error" not in known:
            parts = [part for part in (file, data_file(file)) if part.is_file()]
            digests = "".join(map(digest_of, parts))
            known |= {"file": str(file), "artifact": digests, "bytes": sum(part.stat().st_size for part in parts)}
        record.write_text(json.dumps(known), encoding="utf-8")
        return known

    def file(self, model: str, form: Form) -> Path:
        """Where the file of a form lies."""
        name = form.name.replace(", ", "-").replace(" ", "-").replace(":", "-")
        folder = cache() / "benchmarks" / self.name / model / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "model.onnx"

    def in_child(self, task: str, *arguments: str) -> None:
        """Do `make MODEL FORM FILE` or `judge MODEL FILE`, and print what was found."""
        try:
            found = self._make(*arguments) if task == "make" else _judge(*arguments)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]}
        print(json.dumps(found))

    def _make(self, model: str, form: str, out: str) -> Row:
        target = Path(out)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # tools leave files beside their output
            unfinished = Path(folder) / target.name
            figures = self.forms()[form].make(ALL_MODELS[model]().path(), calibration_data(), unfinished)
            data_file(target).unlink(missing_ok=True)
            if data_file(unfinished).is_file():
                data_file(unfinished).replace(data_file(target))
            unfinished.replace(target)
        return dict(figures)


def calibration_data() -> Path:
    """The folder of what every form is calibrated with."""
    folder = cache() / "benchmarks" / "language" / "data"
    return write_data(folder, tokenizer(), "\n".join(news_articles()[:FOR_CALIBRATION]))


def judged_on() -> str:
    """What answers are judged on, in words."""
    return f"{_JUDGED['windows']} windows of {_JUDGED['window']} tokens each of {' and '.join(_texts())}"


def _texts() -> dict[str, str]:
    news = {"Lee news": "\n".join(news_articles()[FOR_CALIBRATION:])}
    return {"WikiText-2": wikitext()[_ARTICLES_LEFT_OUT:]} | news if wikitext() else news


def _judge(model: str, file: str) -> Row:
    import qcompile

    found: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, words in _texts().items():
            path = Path(folder) / "text.txt"
            path.write_text(words, encoding="utf-8")
            text = qcompile.Text(path, calibration_data() / "tokenizer.json", **_JUDGED)
            float_file = ALL_MODELS[model]().path()
            reference = None if found or float_file.samefile(file) else float_file  # the first text is enough
            seen = asdict(qcompile.evaluate(file, text, reference=reference))
            kept = ("perplexity", "agreement", "divergence", "tokens")
            found[title] = {key: seen[key] for key in kept if seen[key] is not None}
    return found
