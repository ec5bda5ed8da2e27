"""Adapters as files, written without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write(folder: Path, tensors: Mapping[str, npt.NDArray[Any]], **config: object) -> Path:
    """An adapter of `tensors`, named without PEFT's prefix; alpha is twice the rank unless `config` says so."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    named = {f"base_model.model.{name}": np.ascontiguousarray(array) for name, array in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(save(named))
    return folder


def low_rank(module: str, n: int, k: int, rank: int = 2, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of the update of one linear layer."""
    rng = np.random.default_rng(seed)
    return {
        f"{module}.lora_A.weight": rng.standard_normal((rank, k)).astype(np.float32),
        f"{module}.lora_B.weight": rng.standard_normal((n, rank)).astype(np.float32),
    }
