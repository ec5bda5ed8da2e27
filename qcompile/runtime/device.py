"""Where the linear algebra of a compilation runs: in numpy, or in torch on a GPU.

The algorithms are written against the array API, so that the same lines run on both.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from qcompile.errors import TargetError, UsageError

Array = Any  # numpy.ndarray or torch.Tensor


class Device(StrEnum):
    """A device for linear algebra."""

    CPU = "cpu"
    CUDA = "cuda"

    @classmethod
    def named(cls, name: str) -> Device:
        """The device of that name, which is ready for use.

        Raises:
            UsageError: an unknown name.
            QCompileError: there is no GPU, or no torch that uses it.
        """
        from qcompile.runtime.providers import why_no_gpu
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

    def put(self, array: Any) -> Array:
        """A numpy array on the device."""
        if self is Device.CPU:
            return array
        import numpy as np
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.value)


def fetch(array: Array) -> Any:
    """An array of any device for numpy."""
    import numpy as np

    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
