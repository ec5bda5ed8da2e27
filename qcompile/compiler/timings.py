"""What operations of one kind and shape take on one device, in each form: learned once, kept in a file.

A kind is a line of text, the same for operations that do the same work: operator, shapes, attributes, what it absorbs.
The file is JSON, one for each device, provider and version of what computes; it can be committed, and serves as
evidence of what a target's forms cost there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from qcompile.compiler.artifact import write_text
from qcompile.compiler.graph import is_constant, name_of
from qcompile.compiler.tensor_shapes import Shape
from qcompile.compiler.units import Candidate
from qcompile.errors import DataError
from qcompile.runtime.kernel_times import RunTime
from qcompile.runtime.machine import device_name
from qcompile.runtime.ops.places import cache, find, sources_digest
from qcompile.runtime.providers import CPU


class Bench(BaseModel):
    """What times were taken on.

    Attributes:
        device: processor and number of cores, or GPU.
        provider: ONNX Runtime's execution provider.
        versions: of what computes there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    provider: str
    versions: str

    def __str__(self) -> str:
        return f"{self.device}, {self.provider}, {self.versions}"

    @classmethod
    def here(cls, provider: str) -> Bench:
        """This machine.

        Raises:
            TargetError: it lacks what `provider` needs.
        """
        import onnxruntime

        kernels = find()
        ours = f", kernels {sources_digest()}" if kernels and provider != CPU else ""
        return cls(
            device=device_name(provider), provider=provider, versions=f"onnxruntime {onnxruntime.__version__}{ours}"
        )

    def file(self) -> Path:
        """Where its times lie in the user's cache."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", str(self)).strip("-")
        return cache().parent / "timings" / f"{name}.json"


class Timings(BaseModel):
    """Times in ns of one run: by kind of operation or conversion, and by form."""

    model_config = ConfigDict(extra="forbid")

    bench: Bench
    kinds: dict[str, dict[str, RunTime | None]] = {}

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        rows = {kind: dict(sorted(forms.items())) for kind, forms in sorted(self.kinds.items())}
        ordered = self.model_copy(update={"kinds": rows})
        write_text(json.dumps(ordered.model_dump(mode="json"), indent=1) + "\n", path)


def read_timings(path: Path) -> Timings:
    """The times in a file.

    Raises:
        DataError: it cannot be read, or is none of ours.
    """
    try:
        return Timings.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the times cannot be read: {error.strerror}", where=str(path)) from None
    except (ValidationError, UnicodeDecodeError):
        raise DataError("this is no table of times", where=str(path), hint="--autotune writes one") from None


def kind_of(candidate: Candidate, shapes: dict[str, Shape]) -> str | None:
    """The kind of an operation; None where a shape is not known. Shapes of constants stand in brackets."""
    node = candidate.node
    operands = [_operand(value, shapes) for value in node.inputs]
    result = _operand(candidate.output, shapes)
    if None in operands or result is None:
        return None
    attributes = [f"{name}={_text(a)}" for name, a in sorted(node.attributes.items())]
    absorbed = [n.op_type for n in (candidate.bias, candidate.activation) if n is not None]
    return " ".join([node.op_type, *map(str, operands), *attributes, *(f"+{name}" for name in absorbed), "->", result])


def _operand(value: ir.Value | None, shapes: dict[str, Shape]) -> str | None:
    if value is None:
        return "none"
    if is_constant(value):
        return f"[{_size(tuple(value.shape.numpy()) if value.shape is not None else ())}]"
    shape = shapes.get(name_of(value))
    return None if shape is None else _size(shape)


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _text(attribute: ir.Attr) -> str:
    value = attribute.value
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
