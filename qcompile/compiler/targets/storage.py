"""How a target keeps constant weights as codes: formats, block sizes and symmetry, with the pattern that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.compiler.formats import NumericFormat, Scales
from qcompile.compiler.plan import Form

if TYPE_CHECKING:
    from qcompile.compiler.targets.table import Condition, Lowering


@dataclass(frozen=True)
class Storage:
    """One way to store the weights of some operators. The first of a target's storages that fits is taken.

    Attributes:
        op_types: operators whose weight it is.
        formats: formats of the codes.
        blocks: sizes of a block along what is summed over, the usual one first; None is the whole channel.
        lowering: the pattern it is written in.
        kernels: operators of the runtime's optimized graph that prove it really runs.
        evidence: how we know.
        forms: WEIGHTS or ROWS where the inputs stay float, BLOCKS where they are quantized too; the usual one first.
        symmetric: symmetries of integer codes, the usual one first; unsigned ones are asymmetric unless
            a recipe says otherwise.
        full_range: symmetric codes of 4 bits and less use the lowest one, so that a scale may be negative.
        scales: how scales are stored; None leaves it to the format.
        whole_blocks: blocks do not reach over the end of a channel, so their size divides it.
        opset: the lowest in which its operators exist.
        conditions: what must hold of a node besides.
    """

    op_types: tuple[str, ...]
    formats: tuple[NumericFormat, ...]
    blocks: tuple[int | None, ...]
    lowering: Lowering
    kernels: tuple[str, ...]
    evidence: str
    forms: tuple[Form, ...] = (Form.WEIGHTS,)
    symmetric: tuple[bool, ...] = (True, False)
    full_range: bool = False
    scales: Scales | None = None
    whole_blocks: bool = False
    opset: int = 13
    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        formats = ", ".join(f.name for f in self.formats)
        sizes = sorted(set(self.blocks), key=lambda b: b or 2**31)
        blocks = ", ".join("channel" if size is None else str(size) for size in sizes)
        return f"{formats} in blocks of {blocks} for {' and '.join(self.op_types)}"

    def obstacle(self, node: ir.Node) -> str:
        """Why `node` cannot be stored so; empty where it can."""
        return next((c.reason for c in self.conditions if not c.holds(node)), "")

    def block_of(self, depth: int, wanted: int | None = None) -> int | None:
        """The block in channels of `depth` weights: the wanted or the usual one, or the shortest that holds a channel.
        None where blocks would have to reach from one channel into the next."""
        sizes = [wanted] if wanted else [b for b in self.blocks if b is not None]
        if self.whole_blocks:
            return next((b for b in sizes if depth % b == 0), None)
        return min([sizes[0], *(b for b in self.blocks if b is not None and b >= depth)])
