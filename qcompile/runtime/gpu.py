"""The NVIDIA GPUs of this machine, by their driver: whether there is one, and which."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as NVIDIA calls it.
        capability: its compute capability, such as 9.0 for Hopper.
        driver: the newest CUDA that its driver knows.
    """

    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}, compute capability {_dotted(self.capability)}, driver for CUDA {_dotted(self.driver)}"


def why_no_gpu() -> str:
    """What this machine lacks to use an NVIDIA GPU with the installed ONNX Runtime, empty when nothing is missing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1)"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    built, known = cuda_of_runtime(), _driver_version(driver)
    if built and known[0] < built:
        return f"the NVIDIA driver is for CUDA {_dotted(known)}, ONNX Runtime for CUDA {built}: update the driver"
    return ""


def find_gpu(number: int) -> Gpu | None:
    """GPU `number`; None where there is none."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if why_no_gpu():
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetName(name, len(name), device):
        return None
    major, minor = (_attribute(driver, attribute, device) for attribute in (_MAJOR, _MINOR))
    return Gpu(name.value.decode(errors="replace"), (major, minor), _driver_version(driver))


def cuda_of_runtime() -> int:
    """The major version of CUDA that the installed ONNX Runtime was built for, 0 for one without CUDA."""
    from onnxruntime.capi import build_and_package_info

    major = str(getattr(build_and_package_info, "cuda_version", "") or "").partition(".")[0]
    return int(major) if major.isdigit() else 0


def _driver_version(driver: ctypes.CDLL) -> tuple[int, int]:
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _attribute(driver: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
