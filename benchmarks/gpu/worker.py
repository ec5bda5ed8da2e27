"""A process that holds one form of one model, so that one that crashes takes no other with it.

The parent sends lines of JSON and gets one back for each: {"prepare": [number, feed, out]}, {"turn": true} or
{"judge": true}. Only one process is ever at work, so what the device's free memory lost meanwhile is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.contestants import Call, contestant, wait_for
from benchmarks.gpu.forms import Form
from benchmarks.gpu.workloads import WORKLOADS, Workload
from qcompile.runtime.device_memory import used_and_total

_TURN = 0.15  # seconds
_CALLS = 3, 2000
_COMPARED = 2**20
"""Values of the output that are compared, the first ones."""


class Worker:
    """The parent's side."""

    def __init__(self, form: Form, workload: str, file: str | None) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(asdict(form)), workload, file or ""]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def loaded(self) -> dict[str, Any]:
        """Waits until the model is loaded: {"device_mib"} or {"error"}."""
        return self._line()

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer, or {"error"}."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": "the process is gone"}
        return self._line()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # of a process that is gone
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        return {"error": f"the process ended with {self._process.wait()}"}


def turn(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Microseconds of one call, of as many as fill a turn, started one after the other."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    once = time.perf_counter() - start
    calls = int(min(max(_TURN / once, _CALLS[0]), _CALLS[1]))
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - start) / calls * 1e6


class _Server:
    """The other side."""

    def __init__(self, form: Form, workload: Workload) -> None:
        self._form, self._workload = form, workload
        self._wait = wait_for(form.provider)
        self._mib = 0.0
        self._used()  # makes the context of CUDA, which is not counted
        self._call: Call = lambda: None
        self._contestant: Any = None

    def load(self, file: str) -> dict[str, Any]:
        self._contestant = contestant(self._form, self._workload, Path(file) if file else None)
        return {}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        match question:
            case {"prepare": [number, feed, out]}:
                with np.load(feed) as arrays:
                    sample = {name: arrays[name] for name in arrays.files}
                self._call = self._contestant.prepare(number, sample)
                for _ in range(3):
                    turn(self._call, self._wait)
                np.save(out, self._contestant.answer(sample).reshape(-1)[:_COMPARED])
                return {}
            case {"turn": True}:
                return {"microseconds": turn(self._call, self._wait)}
            case _:
                zoo, output = self._workload.zoo, self._workload.output
                assert zoo
                return {"metric": zoo.metric(lambda sample: {output: self._contestant.answer(dict(sample))})}

    def reply(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` finds, or its error, and the memory on the device until then."""
        before = self._used()
        try:
            found = work()
        except Exception as error:  # another's library may refuse in any way
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        self._mib += self._used() - before
        return found | {"device_mib": round(self._mib)}

    def _used(self) -> float:
        used, _ = (used_and_total(0) if self._form.provider != "cpu" else None) or (0, 0)
        return used / 2**20


def _serve(form: Form, workload: Workload, file: str) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    server = _Server(form, workload)
    found = server.reply(lambda: server.load(file))
    print(json.dumps(found), file=channel, flush=True)
    if "error" in found:
        return
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(server.reply(partial(server.answer, question))), file=channel, flush=True)


if __name__ == "__main__":
    _serve(Form(**json.loads(sys.argv[1])), WORKLOADS[sys.argv[2]], sys.argv[3])
