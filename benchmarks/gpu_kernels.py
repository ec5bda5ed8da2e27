"""Our CUDA kernels beside cuBLASLt, cuSPARSELt, PyTorch and ONNX Runtime, and beside what the device can do at best.

    python -m benchmarks.gpu_kernels [FAMILY ...]      families: w8a8 e4m3 w4a16 linear24 norms rows
    python -m benchmarks.gpu_kernels --table           the tables of what was found

Layers of Llama 8B, BERT large and ViT-L, 1 to 8192 rows. Every contestant is one CUDA graph of some calls, each on a
set of tensors of its own, as many as it takes to leave none in the L2 cache; they run in turns.
The least time is the larger of bytes over the measured bandwidth of a copy and operations over the measured rate of
cuBLASLt. Needs an NVIDIA GPU, PyTorch with CUDA and the library of kernels (`qcompile ops build --cuda`).

A run ends after --seconds; run it again and it goes on where it stopped, as long as device and commit are the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.families import FAMILIES, Family
from benchmarks.gpu.shapes import Shape, giga, least_microseconds, shapes, tera
from benchmarks.record import RESULTS, commit, save, table

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; by default all")
    parser.add_argument("--seconds", type=float, default=420, help="stop after this time (420)")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git cannot say")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and measure nothing")
    given = parser.parse_args()
    unknown = set(given.families) - FAMILIES.keys()
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}")
    chosen = {name: family for name, family in FAMILIES.items() if not given.families or name in given.families}
    if given.table:
        for name, family in chosen.items():
            found = _load(name)
            if found:
                print(f"\n{name} on {found['device']}, commit {found['commit']}\n\n{rendered(found, family)}")
        return
    _measure(chosen, given.commit, time.monotonic() + given.seconds)


def rendered(found: Mapping[str, Any], family: Family) -> str:
    """A table of one family: the least time, the time of each contestant in microseconds, and how good ours is."""
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["microseconds"]))
    lines = []
    for row in found["rows"]:
        shape = Shape(*(row[field] for field in ("model", "layer", "m", "n", "k")))
        least = least_of(shape, family, found["ceilings"])
        ours = next((time for name, time in row["microseconds"].items() if name.startswith("ours")), None)
        times = [f"{row['microseconds'][name]:.1f}" if name in row["microseconds"] else "" for name in names]
        rates = ["", "", ""]
        if ours is not None:
            rates = [
                f"{giga(family.bytes(shape), ours):.0f}",
                "" if family.of_rows else f"{tera(shape.operations, ours):.0f}",
                f"{least / ours:.0%}",
            ]
        size = f"{shape.m} x {shape.k}" if family.of_rows else f"{shape.m} x {shape.n} x {shape.k}"
        lines.append([shape.model, shape.layer, size, f"{least:.1f}", *times, *rates])
    header = [
        "Model",
        "Layer",
        "M x N x K" if not family.of_rows else "M x K",
        "least, us",
        *(f"{n}, us" for n in names),
    ]
    return table([*header, "GB/s", "TFLOP/s", "of the least"], lines)


def least_of(shape: Shape, family: Family, ceilings: Mapping[str, float]) -> float:
    """Microseconds that this device would take at its measured best."""
    if not family.ceiling:
        return least_microseconds(family.bytes(shape), ceilings["copy"])
    return least_microseconds(family.bytes(shape), ceilings["copy"], shape.operations, ceilings[family.ceiling])


def _measure(families: Mapping[str, Family], at: str, end: float) -> None:
    import torch

    from benchmarks.gpu.ceilings import measured
    from benchmarks.gpu.timing import l2_bytes, own_stream

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU")
    own_stream()
    device, cache = torch.cuda.get_device_name(0), l2_bytes()
    ceilings = measured()
    print(device, json.dumps(ceilings))
    for name, family in families.items():
        before = _load(name)
        rows: list[Row] = before["rows"] if (before.get("device"), before.get("commit")) == (device, at) else []
        notes = {"commit": at, "device": device, "torch": torch.__version__, "ceilings": ceilings}
        done = {tuple(row[field] for field in ("model", "layer", "m")) for row in rows}
        seen: set[tuple[int, int]] = set()
        for shape in shapes():
            if family.of_rows and (shape.m, shape.k) in seen:
                continue
            seen.add((shape.m, shape.k))
            if (shape.model, shape.layer, shape.m) in done:
                continue
            if time.monotonic() > end:
                print(f"time is up; {name} goes on at {shape}")
                return
            rows.append(_row(shape, family, cache))
            print(name, json.dumps(rows[-1]), flush=True)
            save("gpu_kernels", rows, notes, file=f"gpu-kernels/{name}")
            torch.cuda.empty_cache()
        print(f"\n{name}\n{rendered(_load(name), family)}\n", flush=True)


def _row(shape: Shape, family: Family, cache: int) -> Row:
    """One shape: a contestant that cannot do it leaves its error."""
    from benchmarks.gpu.timing import interleaved

    sets = family.sets(shape, cache)
    row: Row = {"model": shape.model, "layer": shape.layer, "m": shape.m, "n": shape.n, "k": shape.k}
    ready, errors = {}, {}
    for name, make in family.contestants(shape, sets):
        try:
            ready[name] = make()
        except Exception as error:  # another's kernel may refuse a shape in any way
            errors[name] = " ".join(str(error).split())[:200]
    timings = interleaved(ready, len(sets)) if ready else {}
    row["copies"] = len(sets)
    row["microseconds"] = {name: round(timing.microseconds, 2) for name, timing in timings.items()}
    row["spread"] = {name: round(timing.spread, 3) for name, timing in timings.items()}
    return row | ({"errors": errors} if errors else {})


def _load(name: str) -> dict[str, Any]:
    path = RESULTS / "gpu-kernels" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


if __name__ == "__main__":
    main()
