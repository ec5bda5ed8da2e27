"""Results as a JSON file that says where they come from, and as a markdown table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import qcompile

RESULTS = Path(__file__).parent / "results"


def save(name: str, rows: Sequence[dict[str, Any]], notes: dict[str, Any], file: str = "") -> Path:
    """Write what benchmarks/`name`.py found to benchmarks/results/`file or name`.json."""
    path = RESULTS / f"{file or name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "versions": {"qcompile": qcompile.__version__} | {p: version(p) for p in ("onnx", _runtime(), "numpy")},
        **notes,
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def peak_mib() -> float:
    """Peak resident memory of this process alone: Linux counts the parent's into getrusage's figure."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def held_mib() -> float:
    """Memory that this process holds now: resident, and not of a file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


def machine() -> dict[str, Any]:
    """Processor, cores and the instructions that int8 kernels use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"processor": platform.processor(), "cores": os.cpu_count()}
    fields = {k.strip(): v.strip() for line in text.splitlines() if ":" in line for k, v in [line.split(":", 1)]}
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"}
    return {
        "processor": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": sorted(wanted & set(fields.get("flags", "").split())),
    }


def _runtime() -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "onnxruntime"
    return "onnxruntime-gpu"


@cache
def commit() -> str:
    """The commit that is measured, "-dirty" where other files than results have changed since."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return (_git("describe", "--always") or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS)
    return done.stdout.strip()
