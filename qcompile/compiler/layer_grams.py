"""What the layers of one wave read, summed up over all samples while a walk goes by (block_walker.py, gram.py).

Layers that read one tensor share one matrix; convolutions see windows and have one each. A layer whose input exists
as codes reads what the codes stand for. Positions that a mask leaves out do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace

from qcompile.compiler.block_walker import Visit
from qcompile.compiler.context import CompileContext, SampleSource
from qcompile.compiler.gram import Gram
from qcompile.compiler.graph import name_of
from qcompile.compiler.layer_rows import as_read, every_row
from qcompile.compiler.mask import Mask
from qcompile.errors import DataError

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """How a method observes what layers read.

    Attributes:
        method: its name, for what it has to say.
        masks: what the mask is in each sample.
    """

    method: str
    context: CompileContext
    samples: SampleSource
    mask: Mask | None
    masks: Sequence[npt.NDArray[Any]]

    @classmethod
    def of(cls, method: str, mask: str | None, model: ir.Model, context: CompileContext) -> LayerInputs:
        """Over all calibration samples.

        Args:
            mask: name of a model input that is 1 where a position counts.

        Raises:
            DataError: there are no samples, or the mask is no input of the model.
        """
        samples = context.calibration
        if not samples:
            raise DataError(
                "no calibration samples",
                hint=f"give representative inputs with --calib, or take {method} out of the recipe",
            )
        named = Mask.named(mask, model) if mask else None
        return cls(method, context, samples, named, [s[str(mask)] for s in samples] if mask else [])

    def grams(self, nodes: Sequence[ir.Node], visit: Visit, with_float: bool = False) -> dict[str, Gram]:
        """Those of what `nodes` read, by `source_of` them. Inputs that enter the block take no run of their own.

        Args:
            with_float: what the float model reads there is summed up too; it runs along.
        """
        return self._sums(nodes, visit, 1, with_float)[0]

    def halves(self, nodes: Sequence[ir.Node], visit: Visit) -> tuple[dict[str, Gram], dict[str, Gram]]:
        """Two of each, of every other sample: one for a method to look at, one to judge what it did."""
        first, *second = self._sums(nodes, visit, min(2, visit.count))
        return first, second[0] if second else first

    def _sums(
        self, nodes: Sequence[ir.Node], visit: Visit, parts: int, with_float: bool = False
    ) -> list[dict[str, Gram]]:
        sources = {source_of(node): node for node in nodes}
        names = [name_of(_input(node)) for node in sources.values()]
        found: list[dict[str, Gram]] = [{} for _ in range(parts)]
        for i, (given, exact) in enumerate(zip(visit.values(names), _exact(visit, names, with_float), strict=True)):
            part = found[i % parts]
            for source, node in sources.items():
                x = self._rows(node, given, i, quantized=True)
                _check_finite(x, node)
                gram = Gram.of(x, self._rows(node, exact, i) if with_float else None)
                if source in part:
                    part[source].merge(gram)
                else:
                    part[source] = gram
        for part in found:
            for source, gram in part.items():
                _check_finite(gram.matrix, sources[source])
        return found

    def _rows(self, node: ir.Node, given: Mapping[str, Array], sample: int, quantized: bool = False) -> Array:
        """X [groups, rows, K]: what `node` reads of one sample."""
        plan, read = self.context.plan, _input(node)
        x = given[name_of(read)]
        if quantized and (unit := plan.units.get(str(node.name))) is not None:
            x = as_read(x, plan.tensors.get(unit.inputs[0] or ""))
        return every_row(node, self._counting(x, node, sample))

    def _counting(self, x: Array, node: ir.Node, sample: int) -> Array:
        """The rows of `x` that count; all of them where its axes are not those of the mask."""
        if self.mask is None:
            return x
        read = _input(node)
        ways = self.mask.places(read) if node.op_type != "Conv" else None
        if ways is None:
            self.context.notice(
                f"{self.method}: '{name_of(read)}' does not have the axes of the mask, and is taken whole"
            )
            return x
        return self.mask.rows(x, ways[0], self.masks[sample])


def source_of(node: ir.Node) -> str:
    """Layers of the same source have the same Gram matrix."""
    return str(node.name) if node.op_type == "Conv" else name_of(_input(node))


def _input(node: ir.Node) -> ir.Value:
    assert node.inputs[0] is not None
    return node.inputs[0]


def _exact(visit: Visit, names: Sequence[str], with_float: bool) -> Iterator[Mapping[str, Array]]:
    yield from visit.float_values(names) if with_float else ({} for _ in range(visit.count))


def _check_finite(x: Array, node: ir.Node) -> None:
    xp = array_namespace(x)
    if not bool(xp.all(xp.isfinite(x))):
        raise DataError(
            f"the input of '{node.name}' is not finite on the calibration samples",
            where=name_of(_input(node)),
            hint="run the float model on them; a layer that reads infinity or NaN cannot be calibrated",
        )
