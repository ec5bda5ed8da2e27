"""Samples from a user's function: `module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import DataError, UsageError


@dataclass(frozen=True)
class FunctionSamples:
    """Calls `function()` for each walk; it must yield the same dicts every time."""

    function: Callable[[], Iterable[object]]
    description: str
    synthetic: bool = False

    def __iter__(self) -> Iterator[tuple[str, object]]:
        number = 0
        try:
            for number, sample in enumerate(self.function(), 1):
                yield f"{self.description}, sample {number}", sample
        except DataError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{type(error).__name__} after {number} samples: {error}",
                where=f"{self.description}, {last.filename}:{last.lineno}",
                hint="a calibration function takes no argument and yields dicts of input name -> array",
            ) from None


def import_function(spec: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names.

    Raises:
        UsageError: the module or the function does not exist, or the module fails to import.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name:
        raise UsageError(f"'{spec}' names no function", hint="write module:function, or path/to/file.py:function")
    module = _import(module_name, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"'{module_name}' has no function '{name}'", where=spec)
    return function  # type: ignore[no-any-return]


def _import(name: str, spec: str) -> Any:
    try:
        if not name.endswith(".py"):
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(name)
        found = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules.setdefault(found.name, module)
        found.loader.exec_module(module)
        return module
    except FileNotFoundError:
        raise UsageError(f"no such file: {name}", where=spec) from None
    except Exception as error:
        raise UsageError(
            f"'{name}' cannot be imported: {type(error).__name__}: {error}",
            where=spec,
            hint="write module:function, or path/to/file.py:function",
        ) from None
