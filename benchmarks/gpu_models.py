"""Whole models on an NVIDIA GPU: qcompile beside ONNX Runtime, TensorRT and torch.compile.

    python -m benchmarks.gpu_models [MODEL ...]
    python -m benchmarks.gpu_models --table

Every form of a model (benchmarks/gpu/forms.py) runs in a process of its own; they take turns at each point, in rotating
order, the median turn counts. A turn is as many calls as fill 0.15 s, started one after the other, with a wait for the
device at the end: what a server sees that always has work. Beside the time stand the signal-to-noise ratio of the
answer against ONNX Runtime in float32 at that point, the task's own metric where the model has one, and the memory that
the process took on the device. A form that does not load leaves its error.

A run ends after --seconds; run it again and it goes on where it stopped, as long as device and commit are the same.
Files are made first and kept in the zoo's cache. `--provider cpu` runs what can run there, to try the benchmark; with
`--seconds 0` nothing is timed, and the answers alone are judged.
Results go to benchmarks/results/gpu-models/, a folder for each device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.forms import FLOAT, HALF, Form, forms, made
from benchmarks.gpu.timing import Timing
from benchmarks.gpu.worker import Worker
from benchmarks.gpu.workloads import TRIALS, WORKLOADS, Point, Workload
from benchmarks.record import RESULTS, commit, save, table
from tests.zoo.model import Array

_TURNS = 9
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_models", description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(WORKLOADS)}; by default all not tiny"
    )
    parser.add_argument("--seconds", type=float, default=420, help="start no further point after this time (420)")
    parser.add_argument("--provider", help="run every form there instead: cpu")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git cannot say")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and measure nothing")
    given = parser.parse_args()
    if unknown := set(given.models) - WORKLOADS.keys():
        parser.error(f"no model {', '.join(sorted(unknown))}")
    chosen = [WORKLOADS[name] for name in given.models or WORKLOADS if name not in TRIALS or given.models]
    if not given.table:
        device, end = _device(given.provider), time.monotonic() + given.seconds
        for workload in chosen:
            measure(workload, contestants(workload, given.provider), device, given.commit, end)
    for file in sorted((RESULTS / "gpu-models").glob("*/*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if (workload := WORKLOADS[found["model"]]) in chosen:
            print(f"\n{workload.title} on {found['device']}, commit {found['commit']}\n\n{rendered(found, workload)}")


def contestants(workload: Workload, provider: str | None) -> list[Form]:
    """The forms of a model, all on `provider` where one is given."""
    found = forms(workload.kind)
    if provider is None:
        return found
    there = [form for form in found if (form.ours or form.provider == "cuda") and not form.captures]
    return [replace(form, provider=provider) for form in there]


def measure(workload: Workload, chosen: Sequence[Form], device: str, at: str, end: float) -> None:
    """Bring the results of a model up to date, as far as the time goes."""
    file = f"gpu-models/{device.lower().replace(' ', '-')}/{workload.name}"
    found = stored(file)
    if found.get("commit") != at:
        found = {"rows": [], "metrics": {}}
    done = {row["point"] for row in found["rows"]}
    points = [point for point in workload.points if str(point) not in done]
    judged = [form for form in chosen if _judged(form, workload) and form.name not in found["metrics"]]
    if not points and not judged:
        return
    workers, errors = _started(workload, chosen)
    notes = {"model": workload.name, "device": device, "commit": at, "metrics": found["metrics"]}
    notes |= {"metric": workload.zoo.metric_name, "data": workload.zoo.data} if workload.zoo else {}
    try:
        for form in judged:
            answer = workers[form].ask(judge=True) if form in workers else {"error": errors[form.name]}
            if "metric" in answer:  # what failed is tried again
                found["metrics"][form.name] = answer["metric"]
                save("gpu_models", found["rows"], notes, file=file)
            print(workload.name, form.name, answer, flush=True)
        for point in points:
            if time.monotonic() > end:
                print(f"time is up; {workload.name} goes on at {point}")
                return
            row = _row(workload, point, workers, errors)
            found["rows"].append(row)
            print(workload.name, json.dumps(row), flush=True)
            save("gpu_models", found["rows"], notes, file=file)
    finally:
        for worker in workers.values():
            worker.close()


def _started(workload: Workload, chosen: Sequence[Form]) -> tuple[dict[Form, Worker], dict[str, str]]:
    """A process for each form, loaded one after the other, and why others have none."""
    workers: dict[Form, Worker] = {}
    errors: dict[str, str] = {}
    for form in chosen:
        file = made(workload, form.file) if form.file else {"file": None}
        if "error" in file:
            errors[form.name] = str(file["error"])
            continue
        worker = Worker(form, workload.name, file["file"])
        if "error" in (loaded := worker.loaded()):
            errors[form.name] = loaded["error"]
            worker.close()
            continue
        workers[form] = worker
    for name, error in errors.items():
        print(f"{workload.name}, {name}: {error}", flush=True)
    return workers, errors


def _row(workload: Workload, point: Point, workers: Mapping[Form, Worker], lost: Mapping[str, str]) -> Row:
    """One point: all forms prepared, their answers compared, then timed in turns."""
    errors, answers, memory = dict(lost), {}, {}
    turns: dict[str, list[float]] = {}
    ready = [form for form in workers if form.takes(point)]
    with tempfile.TemporaryDirectory() as folder:
        feed, out = Path(folder) / "feed.npz", Path(folder) / "answer.npy"
        np.savez(feed, allow_pickle=False, **workload.feed(point))
        for form in list(ready):
            found = workers[form].ask(prepare=[workload.points.index(point), str(feed), str(out)])
            if "error" in found:
                errors[form.name] = found["error"]
                ready.remove(form)
                continue
            answers[form.name], memory[form.name] = np.load(out).astype(np.float64), found["device_mib"]
    for number in range(_TURNS):
        for form in ready[number % len(ready) :] + ready[: number % len(ready)] if ready else []:
            found = workers[form].ask(turn=True)
            turns.setdefault(form.name, []).append(found.get("microseconds", float("nan")))
    timings = {form.name: Timing.of(turns[form.name]) for form in ready}
    return {
        "point": str(point),
        "batch": point.batch,
        "milliseconds": {name: round(timing.microseconds / 1e3, 4) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "sqnr_db": {name: sqnr(answers[FLOAT], answer) for name, answer in answers.items() if FLOAT in answers},
        "device_mib": memory,
        **({"errors": errors} if errors else {}),
    }


def sqnr(right: Array, answer: Array) -> float | None:
    """Signal-to-noise ratio in dB; None where they are the same."""
    noise = float(((answer - right) ** 2).sum())
    return round(10 * float(np.log10((right**2).sum() / noise)), 1) if noise else None


def _judged(form: Form, workload: Workload) -> bool:
    """A file is judged once; and TensorRT would build engines anew for sentences of every length."""
    once = workload.zoo is not None and form.runner in ("bound", "session", "torch")
    return once and (workload.kind == "images" or not form.provider.startswith("tensorrt"))


def rendered(found: Mapping[str, Any], workload: Workload) -> str:
    """A line for each form: ms at each point (times faster than ORT fp16), accuracy, memory; then what it means."""
    rows = found["rows"]
    seen = {name for row in rows for name in row["milliseconds"]} | found["metrics"].keys()
    names = [form.name for form in forms(workload.kind) if form.name in seen]
    lines = []
    for name in names:
        cells = [_cell(row["milliseconds"], name) for row in rows]
        ratios = [row["sqnr_db"][name] for row in rows if row["sqnr_db"].get(name) is not None]
        metric = found["metrics"].get(name)
        held = max((row["device_mib"][name] for row in rows if name in row["device_mib"]), default=0)
        noise = f"{min(ratios):.1f}" if ratios else ""
        lines.append([name, *cells, noise, f"{metric:.4g}" if metric is not None else "", f"{held:.0f}"])
    text = table(["ms", *(row["point"] for row in rows), "least SQNR, dB", found.get("metric", "metric"), "MiB"], lines)
    errors = {name: error for row in rows for name, error in row.get("errors", {}).items()}
    return "\n".join([text, "", *verdicts(found, workload), *(f"- {n}: {e}" for n, e in errors.items())])


def _cell(times: Mapping[str, float], name: str) -> str:
    if name not in times:
        return ""
    return f"{times[name]:.3f}" + (f" ({times[HALF] / times[name]:.2f})" if HALF in times and name != HALF else "")


def verdicts(found: Mapping[str, Any], workload: Workload) -> list[str]:
    """Our best form at each point against ORT fp16 and the best of the others; at batch 1 against session.run."""
    ours = {form.name for form in forms(workload.kind) if form.ours}
    plain = next(form.name for form in forms(workload.kind) if form.runner == "plain")
    lines = []
    for row in found["rows"]:
        times = row["milliseconds"]
        own = {name: ms for name, ms in times.items() if name in ours}
        others = {name: ms for name, ms in times.items() if name not in ours and name != plain}
        if not own or not others:
            continue
        best, rival = min(own, key=own.__getitem__), min(others, key=others.__getitem__)
        line = f"- {row['point']}: {best} takes {own[best]:.3f} ms, {others[rival] / own[best]:.2f}x {rival}"
        if HALF in others and rival != HALF:
            line += f", {others[HALF] / own[best]:.2f}x {HALF}"
        captured = plain.replace("plain run", "CUDA graph")
        if plain in times and captured in times:
            line += f"; {captured}, is {times[plain] / times[captured]:.2f}x its plain session.run"
        lines.append(line)
    return lines


def stored(file: str) -> dict[str, Any]:
    """What was found so far."""
    path = RESULTS / f"{file}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _device(provider: str | None) -> str:
    if provider:
        return provider
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU; --provider cpu tries the benchmark without one")
    return str(torch.cuda.get_device_name(0))


if __name__ == "__main__":
    main()
