"""LoRA adapters of a session: files in ONNX Runtime's format, read once and given to the runs that ask for them.

An adapter holds values for inputs that have a default (`lora-inputs` makes such a model). ONNX Runtime can add them to
a run by itself, but not to one with I/O binding, so they are fed like any other input here, from where the provider
computes: a switch costs no copy.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.errors import DataError, UsageError
from qcompile.runtime import arrays
from qcompile.runtime.ports import Port

SUFFIX = ".onnx_adapter"

_VERSION = 1


class Adapters:
    """The adapters of one session, by name.

    Args:
        files: name -> file.
        ports: the inputs of the model that have a default.
        device: where they are kept, "cpu" or "cuda" and its number.

    Raises:
        DataError: a file is missing or damaged, or does not fit the model.
    """

    def __init__(self, files: Mapping[str, str | Path], ports: Mapping[str, Port], device: tuple[str, int]) -> None:
        self._owners: list[Any] = []  # values are views of what these hold
        self._values = {name: self._read(Path(path), ports, device) for name, path in files.items()}

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        return f"adapters: {', '.join(self._values)}"

    def values(self, name: str | None) -> Mapping[str, Any]:
        """What adapter `name` gives to the inputs of the model, as OrtValues; nothing for None.

        Raises:
            UsageError: the session has no such adapter.
        """
        if name is None:
            return {}
        if name not in self._values:
            close = difflib.get_close_matches(name, self._values, n=1)
            known = f"it has {', '.join(self._values)}" if self._values else "open it with adapters={name: file}"
            raise UsageError(
                f"the session has no adapter '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""), hint=known
            )
        return self._values[name]

    def _read(self, path: Path, ports: Mapping[str, Port], device: tuple[str, int]) -> dict[str, Any]:
        import onnxruntime

        if not path.is_file():
            raise DataError("no such file", where=str(path), hint="qcompile lora export writes it")
        try:
            held = onnxruntime.AdapterFormat.read_adapter(str(path))
            values: dict[str, Any] = held.get_parameters()
        except Exception as error:  # ONNX Runtime raises RuntimeError and errors of its own
            first = (str(error).strip().splitlines() or [""])[0]
            hint = "qcompile lora export makes one from a folder of PEFT"
            raise DataError(f"this is no adapter of ONNX Runtime: {first}", where=str(path), hint=hint) from None
        _check(values, ports, path)
        if device[0] == "cpu":
            self._owners.append(held)
            return values
        copy = onnxruntime.OrtValue.ortvalue_from_numpy
        return {name: copy(value.numpy(), *device) for name, value in values.items()}


def write_adapter(path: Path, values: Mapping[str, Any]) -> None:
    """Write numpy arrays in ONNX Runtime's format, whole or not at all; an older file is replaced."""
    import onnxruntime

    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(_VERSION)
    made.set_model_version(_VERSION)
    made.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in values.items()})
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        made.export_adapter(str(written))
        written.replace(path)


def _check(values: Mapping[str, Any], ports: Mapping[str, Port], path: Path) -> None:
    """The adapter's parameters are inputs of the model, of their type and shape."""
    unknown = sorted(values.keys() - ports.keys())
    if unknown:
        hint = (
            "it was exported for another model" if ports else "compile the model with lora-inputs: qcompile lora export"
        )
        raise DataError(
            f"{len(unknown)} of {len(values)} parameters of the adapter are no inputs of the model: "
            f"{', '.join(unknown[:3])}",
            where=str(path),
            hint=hint,
        )
    for name, value in values.items():
        port = ports[name]
        if arrays.dtype_name(value) != port.dtype or not port.takes(arrays.shape_of(value)):
            found = f"{arrays.dtype_name(value)} {list(arrays.shape_of(value))}"
            raise DataError(f"'{name}' of the adapter is {found}, the model wants {port}", where=str(path))
