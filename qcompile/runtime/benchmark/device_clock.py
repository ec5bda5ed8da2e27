"""A GPU's clock: a stream, and events of CUDA's driver that tell when the device has come so far.

The driver is there wherever a GPU is, which cannot be said of any Python package for it.
Source: NVIDIA, "CUDA Driver API", the sections on events, streams and primary contexts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from qcompile.errors import TargetError
from qcompile.runtime.gpu import why_no_gpu

_L2_CACHE_SIZE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream


class DeviceClock:
    """The clock of one GPU, with a stream that lives as long as the process.

    Attributes:
        l2_bytes: the size of the GPU's L2 cache.
        stream: the handle of the stream.

    Raises:
        TargetError: there is no GPU, or the driver reports an error.
    """

    def __init__(self, driver: ctypes.CDLL, number: int) -> None:
        self._driver = driver
        device, context, stream, size = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), number)
        self._call("cuDeviceGetAttribute", ctypes.byref(size), _L2_CACHE_SIZE, device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self._events = ctypes.c_void_p(), ctypes.c_void_p()
        for event in self._events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        self.l2_bytes, self.stream = size.value, stream.value or 0

    @staticmethod
    @cache
    def of(number: int) -> DeviceClock:
        """That of the GPU of that number."""
        if missing := why_no_gpu():
            raise TargetError(f"there is no GPU to measure: {missing}")
        return DeviceClock(ctypes.CDLL("libcuda.so.1"), number)

    def milliseconds(self, run: Callable[[], None], times: int) -> float:
        """What the device takes from the first to the last of `times` calls, which enqueue work on the stream."""
        begin, end = self._events
        stream = ctypes.c_void_p(self.stream)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuEventRecord", begin, stream)
        for _ in range(times):
            run()
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuEventRecord", end, stream)
        self._call("cuEventSynchronize", end)
        elapsed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
        return elapsed.value

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuCtxSynchronize")

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            why = text.value.decode() if text.value else f"error {status}"
            raise TargetError(f"the NVIDIA driver cannot do {function}: {why}")
