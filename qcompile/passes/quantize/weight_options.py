"""What a recipe says of weights that are stored as codes: for all layers, and for some by name or role.

Entries apply in order, each changing what it names; one that names a format leaves the rest to the target's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir
from pydantic import BaseModel, Field

from qcompile.compiler.layer_selection import LayerSelection
from qcompile.compiler.roles import Role

WeightFormat = Literal[
    "int2", "uint2", "int4", "uint4", "int8", "uint8", "nf4", "fp8-e4m3", "fp8-e5m2",
    "mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2", "nvfp4",
]  # fmt: skip
BlockSize = Literal[16, 32, 64, 128, 256, "channel"]
Activations = Literal["float", "int8"]


class WeightOptions(BaseModel):
    """What may be said beside the format; the target's table chooses what is left out."""

    block_size: BlockSize | None = Field(
        default=None, description="weights that share a scale, along what is summed over; left out, the table's"
    )
    symmetric: bool | None = Field(
        default=None,
        description="integer codes without a zero point; left out, what is usual on the target; unsigned ones have one",
    )
    activations: Activations | None = Field(
        default=None,
        description="what the kernel multiplies codes with: float inputs, or inputs it quantizes as it runs; left out, "
        "the target's usual one",
    )


class LayerOptions(LayerSelection, WeightOptions):
    """What is different in the layers of a name or a role."""

    format: WeightFormat | None = Field(default=None, description="format of their weights")
    keep_float: bool = Field(default=False, description="leave them float")


@dataclass(frozen=True)
class Wanted:
    """What the weight of a layer shall become, as far as the recipe says.

    Attributes:
        option: the option that says so, for errors.
        kept_by: the entry that keeps it float, empty when none does.
    """

    option: str
    format: str
    block_size: BlockSize | None = None
    symmetric: bool | None = None
    activations: Activations | None = None
    kept_by: str = ""

    @property
    def of_layer(self) -> bool:
        """Whether an entry of `layers` says it."""
        return self.option.startswith("layers")

    def changed(self, entry: LayerOptions, option: str) -> Wanted:
        start = Wanted(option, entry.format) if entry.format else replace(self, option=option)
        return replace(
            start,
            block_size=entry.block_size or start.block_size,
            symmetric=start.symmetric if entry.symmetric is None else entry.symmetric,
            activations=entry.activations or start.activations,
            kept_by=f"kept float by the option layers ({entry})" if entry.keep_float else "",
        )

    def __str__(self) -> str:
        words = [
            "" if self.symmetric is None else "symmetric" if self.symmetric else "asymmetric",
            f"{self.format} weights",
            f"with block-size {self.block_size}" if self.block_size else "",
            f"and {self.activations} inputs" if self.activations else "",
        ]
        return " ".join(filter(None, words))


def wanted_of(node: ir.Node, role: Role | None, everywhere: Wanted, entries: Sequence[LayerOptions]) -> Wanted:
    """What the recipe says of `node`."""
    for i, entry in enumerate(entries):
        if entry.selects(node, role):
            everywhere = everywhere.changed(entry, f"layers[{i}]")
    return everywhere
