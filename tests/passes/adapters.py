"""Adapters as files, written without PEFT, and the small decoder with the names of a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tests.passes.harness import Arrays
from tests.passes.llama import WIDTH, llama, matrices

ATTENTION = ("q", "k", "v", "o")


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


def path(letter: str, layer: int) -> str:
    """The module that weight `w_{letter}{layer}` belongs to."""
    group = "self_attn" if letter in ATTENTION else "mlp"
    return f"model.layers.{layer}.{group}.{letter}_proj"


def named_llama(layers: int = 2) -> ir.Model:
    """The decoder with nodes and weights called as torch's exporter calls them."""
    model = llama(layers)
    for i in range(layers):
        for letter in matrices():
            model.graph.initializers[f"w_{letter}{i}"].name = path(letter, i) + ".weight"
    for node in model.graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if weight is not None and str(weight.name).endswith("_proj.weight"):
            words = str(weight.name).removesuffix(".weight").replace(".layers.", "/layers#").replace(".", "/")
            node.name = f"/{words.replace('#', '.')}/MatMul"
    return model


def sample(seed: int = 3, rows: int = 5) -> Arrays:
    """One input of the decoder."""
    return {"x": np.random.default_rng(seed).standard_normal((2, rows, WIDTH)).astype(np.float32)}


def sqnr(exact: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Of `found`, in decibels."""
    return float(10 * np.log10((exact**2).sum() / max(((exact - found) ** 2).sum(), 1e-30)))
