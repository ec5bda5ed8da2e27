"""A LoRA adapter: low-rank updates of some layers of a model, in the folder that PEFT writes.

    W' = W + s B A,   s = alpha / r,  or alpha / sqrt(r) where the adapter is rank-stabilized (rsLoRA)
    W' = (m / ||W + s B A||) (W + s B A)   row by row, where it has magnitudes m (DoRA)

W: [N, K]; A: [r, K]; B: [N, r]; m: [N]. A convolution has A: [r, C, h, w] and B: [N, r, 1, 1]; a table of V rows of D
numbers A: [r, V] and B: [D, r]. Beside updates an adapter may hold whole tensors, trained in full: biases, and what
PEFT calls modules to save. Source: Hu et al., "LoRA", 2021; Kalajdzievski, "rsLoRA", 2023; Liu et al., "DoRA", 2024;
the layout of adapter_config.json and adapter_model.safetensors is PEFT's.

Errors: DataError for what is no LoRA adapter, or one of a kind that is no sum of its base and B A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import BaseModel, FiniteFloat, ValidationError

from qcompile.errors import DataError, OutputError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

Floats = npt.NDArray[np.float32]

_PREFIX = "base_model.model."
_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
"""Of the names in safetensors files."""

_OTHER_KINDS = {
    "alora_invocation_tokens": "it is active only behind certain tokens (aLoRA)",
    "layer_replication": "it repeats layers of its base",
    "trainable_token_indices": "it trains single rows of a table",
    "target_parameters": "it updates parameters that belong to no linear layer",
    "use_qalora": "it pools the inputs of its layers (QA-LoRA)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "lora_bias": "its updates have biases of their own (lora_bias)",
    "arrow_config": "it mixes other adapters, token by token (Arrow)",
}
"""Fields of the configuration that make it another function of the base, and what they mean."""

_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initializations that take the adapter's share out of the base's weights, or round these."""


class _Config(BaseModel):
    """What adapter_config.json says about scales and layouts."""

    lora_alpha: FiniteFloat = 8
    alpha_pattern: dict[re.Pattern[str], FiniteFloat] | None = None
    use_rslora: bool = False
    fan_in_fan_out: bool = False

    def scale(self, module: str, rank: int) -> float:
        """s of a module; its alpha is that of the first pattern that ends its path."""
        patterns = (self.alpha_pattern or {}).items()
        fitting = (alpha for pattern, alpha in patterns if re.match(rf"(.*\.)?({pattern.pattern})$", module))
        return next(fitting, self.lora_alpha) / (sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, eq=False)
class Update:
    """The update of one layer.

    Attributes:
        module: the layer's path in the model it was trained on, "model.layers.0.self_attn.q_proj".
        down, up: A and B as above.
        scale: s.
        magnitude: m, or None.
        table: the layer looks up rows.
    """

    module: str
    down: Floats
    up: Floats
    scale: float
    magnitude: Floats | None = None
    table: bool = False

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it updates, as the framework it was trained in holds it."""
        if self.table:
            return self.down.shape[1], self.up.shape[0]
        return self.up.shape[0], *self.down.shape[1:]

    def delta(self) -> Floats:
        """s B A, in `shape`."""
        product = self.up.reshape(self.up.shape[0], self.rank) @ self.down.reshape(self.rank, -1)
        if self.table:
            product = product.T
        scaled: Floats = np.float32(self.scale) * product.reshape(self.shape)
        return scaled

    def applied(self, weight: Floats) -> Floats:
        """W', for the weight W in `shape`."""
        found: Floats = weight + self.delta()
        if self.magnitude is None:
            return found
        lengths: Floats = np.linalg.norm(found, axis=1).astype(np.float32)
        return found * (self.magnitude / lengths)[:, None]


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a folder of PEFT holds.

    Attributes:
        name: of the folder.
        updates: by the path of the module.
        trained: whole tensors by their path, "model.norm.weight".
        inputs_first: weights among `trained` are [K, N] (fan_in_fan_out).
    """

    name: str
    updates: Mapping[str, Update]
    trained: Mapping[str, Floats]
    inputs_first: bool = False

    @property
    def ranks(self) -> str:
        """ "16", or "8 to 64"."""
        ranks = sorted({update.rank for update in self.updates.values()})
        return f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else "".join(map(str, ranks))


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`.

    Raises:
        DataError: it is missing, damaged, or of another kind.
    """
    config = _config(folder)
    tensors = _tensors(folder)
    parts: dict[str, dict[str, Floats]] = {}
    trained: dict[str, Floats] = {}
    for key, array in tensors.items():
        name = key.removeprefix(_PREFIX)
        module, found, part = name.partition(".lora_")
        if found:
            parts.setdefault(module, {})[part.removesuffix(".weight")] = array
        else:
            trained[name.replace(".base_layer.", ".")] = array
    updates = {module: _update(module, held, config, folder) for module, held in sorted(parts.items())}
    if not updates and not trained:
        raise DataError("the adapter is empty", where=str(folder / TENSORS))
    return Adapter(folder.resolve().name, updates, trained, config.fan_in_fan_out)


def write_adapter(folder: Path, updates: Mapping[str, Update], base: str) -> None:
    """Write `updates`, all of one rank and scale, as PEFT reads them.

    Args:
        base: what the configuration names as the base model.

    Raises:
        OutputError: the folder cannot be written to.
    """
    library = _library()
    tensors: dict[str, Floats] = {}
    for module, update in updates.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(update.down, np.float32)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(update.up, np.float32)
    first = next(iter(updates.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.rank * first.scale,
        "target_modules": list(updates),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "task_type": None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / TENSORS).write_bytes(library.numpy.save(tensors, metadata={"format": "pt"}))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(folder)) from None


def _config(folder: Path) -> _Config:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        hint = "give the folder that PEFT's save_pretrained wrote"
        raise DataError(f"there is no {CONFIG} here: this is no LoRA adapter", where=str(folder), hint=hint) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError as error:
        raise DataError(f"this is no JSON: {error}", where=str(path)) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise DataError(f"the adapter is of type {kind}, not LORA", where=str(path), hint="merge it with PEFT itself")
    for field, meaning in _OTHER_KINDS.items():
        if config.get(field):
            hint = "merge it with PEFT itself and export the result"
            raise DataError(f"this kind of adapter is not known: {meaning}", where=str(path), hint=hint)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise DataError(
            f"the adapter belongs to a base that its initialization ({start}) changed",
            where=str(path),
            hint="merge it with PEFT itself and export the result, or, of PiSSA, OLoRA and CorDA, save it with "
            "save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    try:
        return _Config.model_validate(config)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()]
        raise DataError("; ".join(faults), where=str(path)) from None


def _tensors(folder: Path) -> dict[str, Floats]:
    path = folder / TENSORS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "save it again with save_pretrained(safe_serialization=True)" if pickled else ""
        raise DataError(f"there is no {TENSORS} here", where=str(folder), hint=hint)
    library = _library()
    tensors: dict[str, Floats] = {}
    try:
        for name, held in sorted(library.deserialize(path.read_bytes())):
            dtype = _DTYPES.get(held["dtype"])
            if dtype is None:
                raise DataError(f"tensor '{name}' of the adapter is of type {held['dtype']}", where=str(path))
            tensors[name] = np.frombuffer(held["data"], dtype.numpy()).reshape(held["shape"]).astype(np.float32)
    except library.SafetensorError as error:
        raise DataError(f"the file is damaged: {error}", where=str(path)) from None
    if bad := [name for name, array in tensors.items() if not np.isfinite(array).all()]:
        raise DataError(f"tensor '{bad[0]}' of the adapter is not finite", where=str(path))
    return tensors


def _library() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        hint = "pip install 'qcompile[safetensors]'"
        raise DataError("adapters are kept in safetensors files: the package is missing", hint=hint) from None
    return safetensors


def _update(module: str, parts: Mapping[str, Floats], config: _Config, folder: Path) -> Update:
    table = "embedding_A" in parts
    names = ("embedding_A", "embedding_B") if table else ("A", "B")
    if missing := [name for name in names if name not in parts]:
        raise DataError(f"module '{module}' of the adapter has no lora_{missing[0]}", where=str(folder / TENSORS))
    magnitude = parts.get("magnitude_vector")
    if unknown := sorted(parts.keys() - {*names, "magnitude_vector"}):
        raise DataError(f"tensor 'lora_{unknown[0]}' of module '{module}' is not known", where=str(folder / TENSORS))
    down, up = (parts[name] for name in names)
    if down.ndim < 2 or up.ndim != (2 if table else down.ndim) or up.shape[1] != down.shape[0]:
        raise DataError(
            f"the ranks of module '{module}' do not match: A is {list(down.shape)}, B is {list(up.shape)}",
            where=str(folder / TENSORS),
            hint="adapters of grouped convolutions cannot be merged" if down.ndim > 2 else "",
        )
    rank = down.shape[0]
    if rank == 0:
        raise DataError(f"module '{module}' of the adapter is of rank 0", where=str(folder / TENSORS))
    if magnitude is not None and (table or down.ndim > 2):
        hint = "merge it with PEFT itself and export the result"
        raise DataError(f"module '{module}' has magnitudes (DoRA) and is no linear layer", where=str(folder), hint=hint)
    if magnitude is not None and magnitude.shape != up.shape[:1]:
        raise DataError(
            f"module '{module}' has magnitudes {list(magnitude.shape)} for {up.shape[0]} rows",
            where=str(folder / TENSORS),
        )
    return Update(module, down, up, config.scale(module, rank), magnitude, table)
