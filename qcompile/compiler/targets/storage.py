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
        symmetric: symmetries of integer codes.
        full_range: symmetric codes of a signed format use the lowest one, so that a scale may be negative.
        scales: how scales are stored; None leaves it to the format.
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
    opset: int = 13
    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        formats = ", ".join(f.name for f in self.formats)
        blocks = ", ".join("channel" if b is None else str(b) for b in sorted(self.blocks, key=lambda b: b or 2**31))
        return f"{formats} in blocks of {blocks} for {' and '.join(self.op_types)}"

    def obstacle(self, node: ir.Node) -> str:
        """Why `node` cannot be stored so; empty where it can."""
        return next((c.reason for c in self.conditions if not c.holds(node)), "")
