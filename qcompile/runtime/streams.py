"""The stream that a session runs on, given as a handle or as another library's object."""

from __future__ import annotations

from typing import Any

from qcompile.errors import UsageError


def handle_of(stream: Any) -> int | None:
    """The CUDA handle of a stream.

    Args:
        stream: an integer, a stream of torch or cupy, or any object with `__cuda_stream__`
            (NVIDIA's protocol of Python libraries, which gives a version and the handle); None for none.

    Raises:
        UsageError: it is nothing of that kind.
    """
    if stream is None or (isinstance(stream, int) and not isinstance(stream, bool)):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):
        if isinstance(found := getattr(stream, attribute, None), int):
            return found
    raise UsageError(
        f"'{stream}' is not a CUDA stream", hint="give a torch stream, or the handle of a stream as an integer"
    )
