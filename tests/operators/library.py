"""The library of CPU kernels, built once from the sources as they are."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from unittest import mock

import onnxruntime
import pytest

from qcompile.errors import TargetError
from qcompile.runtime.ops.build import build
from qcompile.runtime.ops.library import register
from qcompile.runtime.ops.tools import find_tools
from tests.zoo.cache import cache


@functools.cache
def cpu_library() -> Path:
    """The library's file; where a tool for building it is missing, the test that asks for it skips and says so."""
    try:
        tools = find_tools(cuda=False)
    except TargetError as error:
        pytest.skip(error.what)
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache())}):
        return build(tools)


def options_with(library: Path | None) -> onnxruntime.SessionOptions:
    """Options of a session of one thread, with the kernels of `library` or with none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if library is not None:
        register(options, library)
    return options
