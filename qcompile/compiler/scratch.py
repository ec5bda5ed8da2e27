"""Large arrays in files instead of memory: a model's codes may then be larger than memory.

The system writes them out and reads them in again as it needs the memory. The files have no name, so nothing is left
of them however the process ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.errors import OutputError

Array = npt.NDArray[Any]

_LARGE = 1 << 16
"""Bytes; what is smaller stays in memory."""


@cache
def scratch_folder() -> str:
    """Where temporary files go: $TMPDIR, or /var/tmp where there is one, since /tmp often lies in memory."""
    kept = Path("/var/tmp")
    if "TMPDIR" not in os.environ and kept.is_dir() and os.access(kept, os.W_OK):
        return str(kept)
    return tempfile.gettempdir()


def on_disk(array: Array) -> Array:
    """`array`, read-only in a temporary file where it is large; as it is where it is small or lies in a file already.

    Raises:
        OutputError: the disk of the temporary folder is full.
    """
    if array.nbytes < _LARGE or array.dtype.hasobject or in_file(array):
        return array
    try:
        with tempfile.TemporaryFile(dir=scratch_folder()) as file:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            return np.asarray(np.memmap(file, array.dtype, "r", shape=array.shape))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutputError(
            "the disk is full: codes of weights are kept in a temporary folder",
            where=scratch_folder(),
            hint="free some space, or name another folder in the environment variable TMPDIR",
        ) from None


def in_file(array: Array) -> bool:
    """Whether the array is a view of a file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)
