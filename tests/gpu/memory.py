"""Memory that shows what a kernel forgot or overran: bytes of the host or of the device between two guards."""

from __future__ import annotations

import numpy as np

GUARD = 256
"""Bytes of a guard. Tensors start at a multiple of it, as the runtime's do."""


class Memory:
    """Bytes of a device, with a guard before and after."""

    address: int

    def __init__(self, size: int) -> None:
        self.size = size

    def write(self, data: bytes, poison: int) -> None:
        """Put `data` between guards of `poison`; the device has it when this returns."""
        raise NotImplementedError

    def read(self) -> bytes:
        """Guards included; waits for the device."""
        raise NotImplementedError

    def take(self, poison: int) -> bytes:
        """The bytes between the guards, after a look at these."""
        everything = self.read()
        before, inside, after = (
            everything[:GUARD],
            everything[GUARD : GUARD + self.size],
            everything[GUARD + self.size :],
        )
        guard = bytes([poison]) * GUARD
        assert before == guard, "wrote before the start of an output"
        assert after == guard, "wrote past the end of an output"
        return inside


class NumpyMemory(Memory):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        raw = np.zeros(size + 3 * GUARD, np.uint8)
        start = -raw.ctypes.data % GUARD
        self._bytes = raw[start : start + size + 2 * GUARD]
        self.address = self._bytes.ctypes.data + GUARD

    def write(self, data: bytes, poison: int) -> None:
        guard = bytes([poison]) * GUARD
        self._bytes[:] = np.frombuffer(guard + data + guard, np.uint8)

    def read(self) -> bytes:
        return self._bytes.tobytes()


class TorchMemory(Memory):
    def __init__(self, size: int) -> None:
        import torch

        super().__init__(size)
        self._bytes = torch.zeros(size + 2 * GUARD, dtype=torch.uint8, device="cuda")
        assert self._bytes.data_ptr() % GUARD == 0
        self.address = self._bytes.data_ptr() + GUARD

    def write(self, data: bytes, poison: int) -> None:
        import torch

        guard = bytes([poison]) * GUARD
        self._bytes.copy_(torch.frombuffer(bytearray(guard + data + guard), dtype=torch.uint8))
        torch.cuda.synchronize()

    def read(self) -> bytes:
        import torch

        torch.cuda.synchronize()
        return self._bytes.cpu().numpy().tobytes()
