"""How the operators of a model run: by the kernels of a library, or by their definitions.

An operator of the domain `qcompile` travels with its definition, a function body in standard operators. With a
kernel registered ONNX Runtime runs the kernel, without one it inlines the body. A library is registered as a whole,
and a node whose kernel is on another provider would cost copies: then all run by their bodies.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qcompile.errors import TargetError
from qcompile.runtime import model_header
from qcompile.runtime.ops import places
from qcompile.runtime.ops.library import Library, open_library, register

DOMAIN = "qcompile"
_PROVIDERS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}


@dataclass(frozen=True)
class Kernels:
    """How the operators of domain `qcompile` that a model defines run.

    Attributes:
        with_kernel: names of those that run by a kernel of `library`.
        by_body: names of those whose definition is inlined.
        library: None when there is none for this model.
        why: why this library, or why none.
        broken: a library is there and cannot be used.
    """

    with_kernel: tuple[str, ...] = ()
    by_body: tuple[str, ...] = ()
    library: Path | None = None
    why: str = ""
    broken: bool = False

    @property
    def operators(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(sorted(self.with_kernel + self.by_body))

    def __str__(self) -> str:
        if self.library is None:
            return f"{_kinds(len(self.by_body))} run by definition: {self.why}"
        rest = f"; {len(self.by_body)} by definition" if self.by_body else ""
        return f"{_kinds(len(self.with_kernel))} run by kernels of {self.library} ({self.why}){rest}"

    def register(self, options: Any) -> None:
        """Register the library, if there is one, in an `onnxruntime.SessionOptions`.

        Warns:
            UserWarning: the library that is there is broken, and definitions run instead.
        """
        if self.broken:
            warnings.warn(f"{self.why}; qcompile's operators run by their definitions", stacklevel=3)
        if self.library is not None:
            register(options, self.library)


def choose(model: Path | bytes, provider: str) -> Kernels:
    """How the operators of `model` shall run on `provider` (ONNX Runtime's name).

    Raises:
        TargetError: the library that QCOMPILE_OPS names is broken.
    """
    wanted = dict(_signatures(model))
    names = tuple(sorted(wanted))
    if not wanted:
        return Kernels()
    place = places.find()
    if place is None:
        return Kernels((), names, None, places.why_none())
    named = place.origin == places.VARIABLE
    if provider not in _PROVIDERS:
        return Kernels((), names, None, f"{provider} compiles them itself")
    if provider == "CPUExecutionProvider" and not named:
        return Kernels((), names, None, "on the CPU the runtime's own kernels are faster than the library's")
    try:
        library = open_library(place.path)
    except TargetError as error:
        if named:
            raise
        return Kernels((), names, None, str(error), broken=True)
    fault = _fault(wanted, library, _PROVIDERS[provider])
    if fault:
        return Kernels((), names, None, f"the library has {fault}")
    there = library.operators[_PROVIDERS[provider]]
    with_kernel = tuple(name for name in names if name in there)
    return Kernels(with_kernel, tuple(name for name in names if name not in there), library.path, place.origin)


def _kinds(count: int) -> str:
    return f"{count} kind{'' if count == 1 else 's'} of qcompile's operators"


def _fault(wanted: dict[str, str], library: Library, provider: str) -> str:
    """Why the library cannot be registered for a model with the operators `wanted`."""
    there = library.operators[provider]
    everywhere = {name: signature for found in library.operators.values() for name, signature in found.items()}
    for name, signature in sorted(wanted.items()):
        if name in everywhere and everywhere[name] != signature:
            return f"another {name}: {everywhere[name]}, the model has {signature}"
        if name in everywhere and name not in there:
            return f"no {provider} kernel for {name}"
    return "" if there.keys() & wanted.keys() else "none of them"


def _signatures(model: Path | bytes) -> Iterator[tuple[str, str]]:
    """Name and signature of each function of our domain; nothing for a file that is no model."""
    import onnx

    file: BinaryIO
    with io.BytesIO(model) if isinstance(model, bytes) else model.open("rb") as file:
        try:
            for field in model_header.fields(file):
                if field.number == model_header.FUNCTIONS:
                    file.seek(field.start)
                    function = onnx.FunctionProto.FromString(file.read(field.size))
                    if function.domain == DOMAIN:
                        listed = f"{function.name}({', '.join(function.input)}) -> ({', '.join(function.output)})"
                        yield function.name, listed
        except (model_header.NotAModel, model_header.Truncated):
            return
