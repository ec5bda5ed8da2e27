"""Where the arithmetic of a compilation runs: in numpy, or in torch on a GPU.

The algorithms are written against the array API, so that the same lines run on both.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from qcompile.errors import TargetError, UsageError

Array = Any  # numpy.ndarray or torch.Tensor


class Device(StrEnum):
    """A device for linear algebra, and for what it reads and writes."""

    CPU = "cpu"
    CUDA = "cuda"

    @classmethod
    def named(cls, name: str) -> Device:
        """The device of that name, which is ready for use.

        Raises:
            UsageError: an unknown name.
            QCompileError: there is no GPU, or no torch that uses it.
        """
        from qcompile.runtime.gpu import why_no_gpu
        from qcompile.runtime.torch_graph import require_torch

        if name not in list(cls):
            raise UsageError(f"there is no device '{name}'", hint="use cpu or cuda")
        if name == cls.CUDA:
            if missing := why_no_gpu():
                raise TargetError(f"there is no GPU to compute on: {missing}", hint="leave out --device cuda")
            require_torch("--device cuda")
            import torch

            if not torch.cuda.is_available():
                raise TargetError("the installed torch does not use the GPU", hint="install a build with CUDA")
        return cls(name)

    @property
    def in_torch(self) -> str:
        """What torch calls it."""
        return self.value

    def put(self, array: Array) -> Array:
        """A numpy array on the device; what lies there already is not copied, and text stays numpy."""
        import numpy as np

        if self is Device.CPU or not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            return array
        import torch

        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.in_torch)

    def free_bytes(self) -> int:
        """Memory that nobody has taken."""
        if self is Device.CPU:
            from qcompile.runtime.memory import free_bytes

            return free_bytes()
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free)


def fetch(array: Array) -> Any:
    """An array of any device for numpy."""
    return array.cpu().numpy() if hasattr(array, "cpu") else array
