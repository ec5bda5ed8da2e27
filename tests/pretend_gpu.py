"""A GPU for torch where there is none: the numbers are the CPU's, the rules are a device's.

    with pretend_gpu(monkeypatch):
        Device.CUDA.put(array)        a tensor that numpy cannot read and that meets no tensor of the CPU

Tensors say that they lie on torch's device `meta`, which knows shapes alone; each holds a tensor of the CPU, on which
operators really run. An operator that gets tensors of both devices fails, as it would on a GPU, apart from scalars and
indices, which CUDA takes from the CPU too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qcompile.runtime import ahead
from qcompile.runtime.device import Device

DEVICE = "meta"

_BETWEEN_DEVICES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put_", "_index_put_impl_"}


class OnDevice(torch.Tensor):
    """A tensor of the device."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=DEVICE,
            requires_grad=inside.requires_grad,
        )
        made.inside = inside
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inside!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _EveryOperator(TorchDispatchMode):
    """Catches operators that make tensors of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    on_device = [isinstance(t, OnDevice) for t in tensors]
    lost = [t for t, there in zip(tensors, on_device, strict=True) if not there and t.device.type == DEVICE]
    assert not lost, f"{name} gets a tensor that torch made of a list or a number on its own"
    if name not in _BETWEEN_DEVICES and any(on_device):
        must = [args[0], *args[2:]] if name in _INDEXED else tensors
        strangers = [t for t in must if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice) and t.ndim]
        assert not strangers, f"{name} gets tensors of the device and of the CPU"
    wanted = kwargs.get("device")
    to_device = any(on_device) if wanted is None else torch.device(wanted).type == DEVICE
    given = {**kwargs, "device": "cpu"} if wanted is not None else kwargs
    found = func(*tree_map(_inside, args), **tree_map(_inside, given))
    if "out" in kwargs:
        return kwargs["out"]
    if name.endswith("_"):
        return args[0]
    return tree_map(lambda t: OnDevice(t) if to_device and isinstance(t, torch.Tensor) else t, found)


def _inside(value: Any) -> Any:
    return value.inside if isinstance(value, OnDevice) else value


@contextmanager
def pretend_gpu(patch: pytest.MonkeyPatch, free: int = 1 << 30) -> Iterator[None]:
    """`Device.CUDA` is such a device, with `free` bytes of memory."""
    patch.setattr(Device, "in_torch", property(lambda self: DEVICE if self is Device.CUDA else "cpu"))
    patch.setattr(Device, "free_bytes", lambda self: free)
    entered = partial(ThreadPoolExecutor, initializer=lambda: _EveryOperator().__enter__())
    patch.setattr(ahead, "ThreadPoolExecutor", entered)
    with _EveryOperator():
        yield
