"""What the passes share that set weights to zero: their options, the layers they treat, and the walk over these.

Each layer is treated on what the thinned layers before it give. The weights that stay are then refitted by least
squares (recovery.py), a bias that is there with them, so that they make good what went; weights that were zero stay
zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from array_api_compat import array_namespace, device
from pydantic import BaseModel, Field, model_validator

from qcompile.compiler.context import CompileContext
from qcompile.compiler.gram import Gram
from qcompile.compiler.layer_grams import LayerInputs
from qcompile.compiler.layer_selection import LayerSelection, by_reason, idle_roles
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.refit import on_positions, summary
from qcompile.compiler.reporting.wording import count
from qcompile.compiler.roles import Role, roles
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.layer_walk import Wave, walk_layers
from qcompile.passes.transform.recovery import Arrays, Recovery, write
from qcompile.passes.transform.sparsity.arrangement import Arrangement, channels_last

Array = Any  # numpy.ndarray or torch.Tensor


class LayerSparsity(LayerSelection):
    """What is different in the layers of a name or a role."""

    pattern: str | None = Field(default=None, description="how their zeros are arranged")
    ratio: float | None = Field(default=None, gt=0, lt=1, description="the share of their weights that goes")
    keep_dense: bool = Field(default=False, description="leave them as they are")

    @model_validator(mode="after")
    def _says_one_thing(self) -> LayerSparsity:
        if self.pattern is not None:
            Arrangement.parse(self.pattern, self.ratio)
        return self


_HEAD = LayerSparsity.model_validate({"role": Role.HEAD, "keep-dense": True})


class SparsityOptions(BaseModel):
    """What shall become zero."""

    pattern: str = Field(
        default="2:4",
        description="how zeros are arranged: N:M (N of every M weights along what is summed over stay), "
        "`unstructured`, `rows`, `columns`, or blocks of outputs and inputs such as 16x1",
    )
    ratio: float | None = Field(
        default=None, gt=0, lt=1, description="the share that goes, where the pattern does not say it; left out, half"
    )
    refit: bool = Field(
        default=True, description="solve the weights that stay anew, by least squares on the calibration samples"
    )
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )
    layers: tuple[LayerSparsity, ...] = Field(
        default=(_HEAD,),
        description="what is different in some layers: entries with `name` (with * and ?) or `role` (attention, mlp, "
        "embedding, head) or both, and `pattern`, `ratio`, or `keep-dense: true`. They apply in order; left out, the "
        "head stays dense",
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> SparsityOptions:
        self._check(Arrangement.parse(self.pattern, self.ratio))
        for entry in self.layers:
            self._check(self._changed(entry, Arrangement.parse(self.pattern, self.ratio)))
        return self

    def _check(self, wanted: Arrangement) -> None:
        """Refuse by a ValueError what the method has no way to do."""

    def _changed(self, entry: LayerSparsity, wanted: Arrangement) -> Arrangement:
        """What an entry does not say stays as wanted."""
        if entry.pattern is None and entry.ratio is None:
            return wanted
        text, ratio = entry.pattern or wanted.text, entry.ratio
        return Arrangement.parse(text, wanted.ratio if ratio is None and ":" not in text else ratio)


class Sparsify(Pass, SparsityOptions):
    """A pass that sets weights to zero: says how in `thinned`."""

    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    changes_function: ClassVar[bool] = True

    def thinned(self, weight: Array, wanted: Arrangement, gram: Gram | None) -> Array:
        """`weight`, [groups, N, K], with zeros arranged as wanted."""
        raise NotImplementedError

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        wanted, dense = self._layers(model, context)
        errors: dict[str, tuple[float, float]] = {}
        if wanted and (self.needs_samples or (self.refit and context.calibration)):
            inputs = LayerInputs.of(self.name, self.mask, model, context)
            names = Names(model)
            for wave in walk_layers(list(wanted), model, context, inputs, method=self, with_float=self.refit):
                found = wave.once(partial(self._edits, wave, wanted, context))
                errors |= {layer.name: write(layer, found, names, self.name) for layer in wave.layers}
        else:
            for layer, arrangement in wanted.items():
                layer.write(self._left(layer, layer.matrix(), arrangement, None))
        context.notice(self._treated(wanted, dense))
        if errors and self.refit:
            context.notice(summary(self.name, errors))
        if self.refit and not errors and wanted:
            context.notice(f"{self.name}: no calibration samples, so the weights that stay are not refitted")
        return bool(wanted)

    def _layers(
        self, model: ir.Model, context: CompileContext
    ) -> tuple[dict[LinearLayer, Arrangement], dict[str, str]]:
        """What the weight of each layer shall become, and why others stay dense."""
        known, wanted = roles(model), {}
        layers, dense = linear_layers(model)
        if self.layers != (_HEAD,):
            for role in idle_roles(model, self.layers, known, self.name):
                context.notice(f"no layer of this model has the role {role} (option layers of {self.name})")
        for layer in layers:
            arrangement, reason = Arrangement.parse(self.pattern, self.ratio), ""
            for entry in self.layers:
                if entry.selects(layer.node, known.get(layer.name)):
                    arrangement = self._changed(entry, arrangement)
                    reason = f"kept dense by the option layers ({entry})" if entry.keep_dense else ""
            reason = reason or arrangement.obstacle(layer)
            if not reason and arrangement.holds(layer.matrix()[:, :, channels_last(layer)]):
                reason = f"it is {arrangement} already"
            if reason:
                dense[layer.name] = reason
            else:
                wanted[layer] = arrangement
        return wanted, dense

    def _edits(self, wave: Wave, wanted: Mapping[LinearLayer, Arrangement], context: CompileContext) -> Arrays:
        """What becomes of each layer of a wave."""
        found: Arrays = {}
        for layer in wave.layers:
            weight, gram = context.device.put(layer.matrix()), wave.gram(layer)
            left = self._left(layer, weight, wanted[layer], gram)
            solve = partial(_refitted, weight, left) if self.refit else None
            bias = self.refit and layer.bias is not None
            found |= Recovery.of(weight, left, gram, refitted=solve, bias=bias).arrays(layer.name)
        return found

    def _left(self, layer: LinearLayer, weight: Array, wanted: Arrangement, gram: Gram | None) -> Array:
        """What `thinned` leaves of the weight of a layer: it sees the channels of a convolution side by side."""
        xp, order = array_namespace(weight), channels_last(layer)
        there, back = (xp.asarray(places, device=device(weight)) for places in (order, np.argsort(order)))
        seen = Gram(gram.matrix[:, there][:, :, there], gram.rows) if gram is not None else None
        return self.thinned(weight[:, :, there], wanted, seen)[:, :, back]

    def _treated(self, wanted: Mapping[LinearLayer, Arrangement], dense: Mapping[str, str]) -> str:
        """How many layers became what, and why the others did not."""
        counts = Counter(str(arrangement) for arrangement in wanted.values())
        became = ", ".join(f"{count(n, 'layer')} {text}" for text, n in counts.items()) or "no layer is thinned"
        return f"{self.name}: {became}" + (f". Left as they were: {by_reason(dense)}" if dense else "")


def _refitted(weight: Array, left: Array, gram: Gram) -> Array:
    """`left` with the weights that are not zero solved anew."""
    return on_positions(weight, gram, (left != 0) & (weight != 0), left)
