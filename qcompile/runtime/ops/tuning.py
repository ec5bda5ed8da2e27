"""Which of its kernels a linear layer runs on this device: measured once, kept in the user's cache.

The library has several configurations (tiles, schedules) of LinearW8A8 and LinearE4M3 and a rule that picks one for a
shape. `tune` times them all and writes down the fastest; `apply` tells a library what was written down for the device
at hand. The file is JSON, one for each device, driver and build of the library; configurations stand in it by name.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError
from qcompile.runtime.ops.places import cache

FAMILIES = ("LinearW8A8", "LinearE4M3")
"""The families of operators that have configurations."""

ROWS = tuple(2**i for i in range(14))
"""The numbers of rows that are tuned by default: the library rounds others up to one of these."""


@dataclass(frozen=True, order=True)
class Shape:
    """A layer y[m, n] = x[m, k] w[n, k]^T of a family."""

    family: str
    n: int
    k: int
    m: int


@dataclass(frozen=True)
class Choice:
    """What was found for a shape.

    Attributes:
        configuration: the name of the fastest one, `microseconds` its time.
        rule: the one that the library would run untuned, `rule_microseconds` its time.
    """

    shape: Shape
    configuration: str
    microseconds: float
    rule: str
    rule_microseconds: float


class Tuned:
    """The tuning doors of a library, on the current device.

    Raises:
        TargetError: the library has no CUDA kernels, or there is no GPU.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        try:
            device, build = self._library.qcompile_device, self._library.qcompile_build
            self._name = _function(self._library.qcompile_configuration, ctypes.c_char_p, "si")
            self._rule = _function(self._library.qcompile_default, ctypes.c_int, "slll")
            self._bucket = _function(self._library.qcompile_row_bucket, ctypes.c_int64, "l")
            self._choose = _function(self._library.qcompile_choose, None, "sllli")
            self._measure = _function(self._library.qcompile_measure, ctypes.c_char_p, "slllp")
        except AttributeError:
            raise TargetError(
                "this library of kernels has none for CUDA", where=str(library), hint="qcompile ops build --cuda"
            ) from None
        device.restype = build.restype = ctypes.c_char_p
        found = device()
        if found is None:
            raise TargetError("there is no GPU to tune kernels on", hint="nvidia-smi says whether one is seen")
        self.device: str = found.decode()
        self.build: str = build().decode()

    def configurations(self, family: str) -> list[str]:
        """Their names, by number; empty where this device has no kernel of the family."""
        return list(self._names(family))

    def bucket(self, shape: Shape) -> Shape:
        """The shape with the largest number of rows that is tuned together with its own."""
        return replace(shape, m=int(self._bucket(shape.m)))

    def choose(self, shape: Shape, configuration: int) -> None:
        """Let all layers of this shape run this configuration."""
        self._choose(shape.family.encode(), shape.m, shape.n, shape.k, configuration)

    def rule(self, shape: Shape) -> int:
        """The configuration that runs untuned."""
        return int(self._rule(shape.family.encode(), shape.m, shape.n, shape.k))

    def measure(self, shape: Shape, configuration: int) -> float | None:
        """Microseconds; None for a configuration that cannot do this shape. It stays chosen."""
        self.choose(shape, configuration)
        microseconds = ctypes.c_double()
        refused = self._measure(shape.family.encode(), shape.m, shape.n, shape.k, ctypes.byref(microseconds))
        return None if refused is not None else microseconds.value

    def _names(self, family: str) -> Iterator[str]:
        number = 0
        while (name := self._name(family.encode(), number)) is not None:
            yield name.decode()
            number += 1


def tune(
    library: Path, shapes: Collection[Shape], done: Callable[[Choice], None] = lambda _choice: None
) -> tuple[Path, list[Choice]]:
    """Time every configuration for `shapes` and keep the fastest, beside what was kept before.

    Args:
        done: told of the choice for each shape.

    Returns:
        The file, and what was found now.

    Raises:
        TargetError: no GPU, no CUDA kernels in the library, or none that can do one of the shapes.
    """
    tuned = Tuned(library)
    found = []
    for shape in sorted({tuned.bucket(shape) for shape in shapes}):
        found.append(_fastest(tuned, shape))
        done(found[-1])
    path = file_for(tuned)
    kept = {choice.shape: choice for choice in [*read(path), *found]}
    _write(path, tuned, sorted(kept.values(), key=lambda choice: choice.shape))
    return path, found


def apply(library: Path) -> int:
    """Tell `library` what was kept for this device; how many shapes that were. Without a GPU there is nothing to do."""
    if not (cache().parent / "tuned").is_dir():
        return 0
    try:
        tuned = Tuned(library)
    except TargetError:
        return 0
    numbers = {family: {name: i for i, name in enumerate(tuned.configurations(family))} for family in FAMILIES}
    told = 0
    for choice in read(file_for(tuned)):
        number = numbers.get(choice.shape.family, {}).get(choice.configuration)
        if number is not None:
            tuned.choose(choice.shape, number)
            told += 1
    return told


def file_for(tuned: Tuned) -> Path:
    """Where choices for this device, driver and build are kept."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{tuned.device}-{tuned.build}").strip("-")
    return cache().parent / "tuned" / f"{name}.json"


def read(path: Path) -> list[Choice]:
    """What is kept in `path`; nothing when there is no such file, or it is damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["choices"]
        return [Choice(shape=Shape(**row.pop("shape")), **row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def shapes_of(model: Path, rows: Collection[int]) -> list[Shape]:
    """The shapes of the layers of a compiled model, for each number of rows."""
    import onnx

    found: set[tuple[str, int, int]] = set()
    sizes: dict[str, tuple[int, ...]] = {}
    graphs = [onnx.load(model, load_external_data=False).graph]
    while graphs:
        graph = graphs.pop()
        sizes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for node in graph.node:
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            family = next((f for f in FAMILIES if node.op_type.startswith(f)), None)
            if node.domain == "qcompile" and family and node.input[2] in sizes:
                n, k = sizes[node.input[2]]
                found.add((family, n, k))
    return [Shape(family, n, k, m) for family, n, k in sorted(found) for m in sorted(rows)]


def _fastest(tuned: Tuned, shape: Shape) -> Choice:
    names = tuned.configurations(shape.family)
    times = {i: time for i in range(len(names)) if (time := tuned.measure(shape, i)) is not None}
    if not times:
        raise TargetError(
            f"no kernel of {shape.family} for M {shape.m}, N {shape.n}, K {shape.k} on {tuned.device}",
            hint="K is a multiple of 16, N of 8; LinearE4M3 needs compute capability 8.9",
        )
    best, rule = min(times, key=lambda i: times[i]), tuned.rule(shape)
    tuned.choose(shape, best)
    return Choice(shape, names[best], round(times[best], 3), names[rule], round(times.get(rule, times[best]), 3))


def _write(path: Path, tuned: Tuned, choices: list[Choice]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"device": tuned.device, "library": tuned.build, "choices": [asdict(choice) for choice in choices]}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    os.replace(file.name, path)


def _function(function: Any, result: Any, arguments: str) -> Any:
    kinds = {"s": ctypes.c_char_p, "l": ctypes.c_int64, "i": ctypes.c_int, "p": ctypes.c_void_p}
    function.restype, function.argtypes = result, [kinds[letter] for letter in arguments]
    return function
