"""The CUDA stream that a session runs on, and its order with the streams that arrays are computed on.

Without a stream of the user's, ONNX Runtime runs on streams of its own, of which it tells nobody: the host waits until
the inputs are there, and ONNX Runtime waits for the results before it returns.

With one, torch's current stream and the session's wait for each other on the device, and the host for nothing. Three
things must be in order for that:

    inputs      the session's stream waits for torch's: what torch was told to compute is there
    results     torch's stream waits for the session's: what torch is told next reads them complete
    memory      both hand memory out again in the order of their streams; since they wait for each other at every
                run, neither writes over what the other still reads

Sources: onnxruntime issue 26609 (nothing waits for the inputs), its pull request 5415 (memory of an arena in the order
of one stream), run option disable_synchronize_execution_providers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from qcompile.errors import UsageError
from qcompile.runtime import arrays
from qcompile.runtime.arrays import Array


@dataclass(frozen=True)
class Stream:
    """What a session runs on.

    Args:
        handle: of a CUDA stream of the user, None for ONNX Runtime's own.
    """

    handle: int | None = None

    @contextlib.contextmanager
    def ordered(self, array: Array, alone: bool) -> Iterator[Any]:
        """Around a run: its inputs are there before it, its results for whoever uses them after it.

        Args:
            array: an input that tells the library.
            alone: no input is copied from elsewhere. Such a copy is not in the order of the stream, and may go to
                memory that a run reads which is still under way.

        Yields:
            `onnxruntime.RunOptions` for the run, or None.
        """
        if self.handle is None or not alone or not arrays.is_torch(array) or not arrays.on_device(array):
            wait_for(array)
            yield None
            return
        cuda = import_module("torch.cuda")
        theirs, ours = cuda.current_stream(array.device), cuda.ExternalStream(self.handle, array.device)
        apart = theirs.cuda_stream != self.handle
        if apart:
            ours.wait_stream(theirs)
        yield _without_waiting()
        if apart:
            theirs.wait_stream(ours)


def handle_of(stream: Any) -> int | None:
    """The CUDA handle of a stream.

    Args:
        stream: an integer, a stream of torch or cupy, or any object with `__cuda_stream__`
            (NVIDIA's protocol of Python libraries, which gives a version and the handle); None for none.

    Raises:
        UsageError: it is nothing of that kind.
    """
    if stream is None or (isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):
        if isinstance(found := getattr(stream, attribute, None), int):
            return found
    raise UsageError(
        f"'{stream}' is not a CUDA stream", hint="give a torch stream, or the handle of a stream as an integer"
    )


def wait_for(array: Array) -> None:
    """Wait on the host until the array's library has computed what it was told to."""
    if not arrays.on_device(array):
        return
    if arrays.is_torch(array):
        import_module("torch.cuda").current_stream(array.device).synchronize()
    elif hasattr(array, "block_until_ready"):  # jax
        array.block_until_ready()
    elif type(array).__module__.partition(".")[0] == "cupy":
        import_module("cupy.cuda").get_current_stream().synchronize()


def _without_waiting() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
