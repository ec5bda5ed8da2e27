"""LoftQ: an adapter that makes good what the codes of its base miss, for fine-tuning to start near the float model.

    min over codes Q, rank r  ||W - Q - B A||     Q_t = nearest(W - B_{t-1} A_{t-1}),  B_t A_t = SVD_r(W - Q_t)

in turn, from B A = 0, for a few rounds; the round of least error counts. A plain adapter starts at B A = 0, where the
base answers as its codes do. Q is round-to-nearest on the grid that the recipe's placement gives the layer. So
W - B_{t-1} A_{t-1} becomes the weight of the base, of which round-to-nearest makes Q_t, and the adapter, which starts
at B_t A_t, is written as PEFT reads it; B and A share the singular values evenly. The layers are those with the fewest
bits. Leave merge-linear out of the recipe: merged layers are no modules of the framework that trains.

Shapes: W [N, K], B [N, r], A [r, K]. Source: Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language
Models", 2023 (arXiv:2310.08659), algorithm 1.

Errors: RecipeError without a folder for the adapter, or where no layer is placed behind it; OutputError where the
folder holds an adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field, field_serializer

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.layer_rows import in_layout, matrix
from qcompile.compiler.layer_selection import by_reason
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.lora.adapter import CONFIG, Update, write_adapter
from qcompile.compiler.lora.names import modules_of_layers
from qcompile.compiler.low_rank import Factors, decomposed
from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import channels_by
from qcompile.compiler.simulation import placement
from qcompile.compiler.weight_params import weight_params
from qcompile.errors import OutputError, RecipeError
from qcompile.passes.transform.low_rank_branch import layers_for_branches

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Start:
    """Where the fine-tuning of one layer starts.

    Attributes:
        base: the weight that the codes are the nearest of, [1, N, K].
        up, down: B and A.
        plain, error: ||W - Q - B A|| / ||W||, without an adapter and with it.
    """

    base: Floats
    up: Floats
    down: Floats
    plain: float
    error: float


def parted(weight: Floats, nearest: Callable[[Floats], Floats], rank: int, rounds: int) -> Start:
    """The start for W, [1, N, K]; `nearest`: what the codes of such a matrix stand for."""
    whole, base, found, plain = float(np.linalg.norm(weight)), weight, None, 0.0
    for number in range(rounds):
        missed = weight - nearest(base)
        factors = decomposed(missed).truncated(rank)
        error = float(np.linalg.norm(missed - factors.product)) / max(whole, _TINY)
        if number == 0:
            plain = float(np.linalg.norm(missed)) / max(whole, _TINY)
        if found is None or error < found.error:
            found = Start(base, *_evenly(factors), plain, error)
        base = (weight - factors.product).astype(np.float32)
    assert found is not None
    return found


_TINY = float(np.finfo(np.float32).tiny)


def _evenly(factors: Factors) -> tuple[Floats, Floats]:
    """B and A of the same size: a truncation leaves all of it in the right factor."""
    size = np.sqrt(np.linalg.norm(factors.right[0], axis=1))
    size = np.where(size > 0, size, 1)
    return (factors.left[0] * size).astype(np.float32), (factors.right[0] / size[:, None]).astype(np.float32)


class Loftq(Pass):
    """Part each weight into codes and the start of an adapter."""

    name: ClassVar[str] = "loftq"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    changes_function: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    adapter: str = Field(default="", description="the folder to write the adapter to")
    rank: int = Field(default=16, ge=1, description="rank of the adapter")
    rounds: int = Field(default=5, ge=1, description="how often codes and adapter are found anew")
    names: tuple[str, ...] = Field(
        default=(), description="what the framework that trains calls a layer, such as `encoder.{}.query=blk.{}.attn_q`"
    )

    @field_serializer("adapter")
    def _without_folder(self, adapter: str) -> str:
        return Path(adapter).name

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        folder = Path(self.adapter)
        if not self.adapter:
            raise RecipeError(f"{self.name} has no folder to write to", hint=f"--set {self.name}.adapter=FOLDER")
        if (folder / CONFIG).exists():
            raise OutputError("the folder holds an adapter already", where=self.adapter, hint="give another folder")
        units = placement(model, context).units
        layers, left_out = _modules(model, units, self.rank)
        if not layers:
            why = next(iter(left_out.values()), "put place-weights behind it")
            raise RecipeError(f"{self.name} finds no layer to adapt", hint=why)
        modules = modules_of_layers([module_of(layer) for layer in layers], self.names)
        updates, errors = {}, []
        for layer in layers:
            start = parted(layer.matrix(), _nearest(layer, units[layer.name]), self.rank, self.rounds)
            layer.write(start.base)
            module = modules[module_of(layer)]
            updates[module] = Update(module, start.down, start.up, 1.0)
            errors.append((start.plain, start.error))
        write_adapter(folder, updates, context.float_model.stem)
        plain, error = np.median(errors, axis=0)
        context.notice(
            f"{self.name}: an adapter of rank {self.rank} for {len(layers)} layers takes the error of their weights "
            f"from {plain:.2%} to {error:.2%} (median)"
        )
        if left_out:
            context.notice(f"{self.name}: no part for {by_reason(left_out)}")
        return True


def _nearest(layer: LinearLayer, unit: Unit) -> Callable[[Floats], Floats]:
    """What the nearest codes of a matrix [1, N, K] in the place of the layer's stand for."""
    like, spec = constant(layer.weight), unit.weight_spec
    assert like is not None
    assert spec is not None

    def values(weight: Floats) -> Floats:
        stored = in_layout(layer.node, weight, like)
        params = weight_params(stored, spec)
        found: Floats = matrix(layer.node, dequantize(quantize(stored, params), params))
        return found

    return values


def _modules(model: ir.Model, units: Mapping[str, Unit], rank: int) -> tuple[list[LinearLayer], dict[str, str]]:
    """The layers that have a counterpart where the adapter is trained, and why others are left out."""
    layers, left_out = layers_for_branches(model, units, rank)
    called = Counter(map(module_of, layers))
    for layer in layers:
        if by := channels_by(layer.node):
            left_out[layer.name] = f"{by} scaled or moved its channels: leave it out of the recipe"
        elif called[module_of(layer)] > 1:
            left_out[layer.name] = f"several layers are called after module '{module_of(layer)}'"
    return [layer for layer in layers if layer.name not in left_out], left_out


def module_of(layer: LinearLayer) -> str:
    """The path of the module that a layer was exported from, by the name of its weight or of its node."""
    weight = name_of(layer.weight)
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = layer.name.strip("/").split("/")
    return ".".join(scopes[:-1] or scopes)
