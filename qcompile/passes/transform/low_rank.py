"""Truncated SVD: a layer becomes two thin ones through few channels, where these have fewer weights and operations.

    W ~ A B,  B: [r, K], A: [N, r]      min ||(W - A B) S||^2 = sum_{i>r} sigma_i^2,   sigma_i of W S
    S S^T = 1 (plain),  diag(rms x_j) (asvd),  X X^T (svd-llm: the error of the layer's outputs, exactly)

r follows for each layer from one budget: the ranks for which the errors of all blocks, by these sums, add up to the
least (truncation/block_errors.py, allocation.py). Layers are truncated in order, and A is refitted by least squares to
what the float layer gives, from what the truncated layers before it give. Convolutions are two of fewer channels, or
of a column and of a row (truncation/thin_forms.py), whichever loses less.

W: [groups, N, K]; X: [groups, K, rows]; computed in float64. Source: Denton et al., "Exploiting Linear Structure
Within Convolutional Networks", 2014; Yuan et al., "ASVD", 2023 (arXiv:2312.05821); Wang et al., "SVD-LLM", 2024
(arXiv:2403.07378), which gives all layers one ratio.

Errors: DataError without samples; RecipeError for a rank that is larger than a matrix, for a name under `layers` that
matches nothing, or where the layers cannot become as small as `keep`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.allocation import Option, allocate
from qcompile.compiler.context import CompileContext
from qcompile.compiler.layer_grams import LayerInputs
from qcompile.compiler.layer_selection import LayerSelection, by_reason, idle_roles
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.low_rank import Factors
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.refit import DAMPING, relative_error, summary
from qcompile.compiler.reporting.wording import count
from qcompile.compiler.roles import roles
from qcompile.errors import RecipeError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.layer_walk import Wave, walk_layers
from qcompile.passes.transform.truncation import two_layers
from qcompile.passes.transform.truncation.block_errors import Trial, block_errors
from qcompile.passes.transform.truncation.fit import Method, decomposition, evened, refitted
from qcompile.passes.transform.truncation.thin_forms import Strips, ThinForm, thin_forms
from qcompile.runtime.device import fetch

Array = Any  # numpy.ndarray or torch.Tensor


class LayerRank(LayerSelection):
    """What is different in the layers of a name or a role."""

    rank: int | None = Field(default=None, ge=1, description="their rank, whatever the others lose by it")
    keep_whole: bool = Field(default=False, description="leave them as they are")


class LowRank(Pass):
    """Write layers as two thin ones, within a budget of weights."""

    name: ClassVar[str] = "low-rank"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    changes_function: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    keep: float = Field(default=0.8, gt=0, le=1, description="share of the weights of the treated layers that is left")
    method: Method = Field(
        default="svd-llm",
        description="the metric of the truncation: of the weights alone (plain), of the weights by the size of their "
        "inputs (asvd), or of the outputs (svd-llm)",
    )
    refit: bool = Field(default=True, description="make good by least squares what can be made good")
    multiple: int = Field(default=8, ge=1, description="ranks are multiples of it, as kernels like them")
    samples: int = Field(
        default=8, ge=1, description="calibration samples, the first, on which each layer is tried for its rank"
    )
    damping: float = Field(
        default=DAMPING, gt=0, description="share of the mean of the metric's diagonal that is added to the diagonal"
    )
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )
    layers: tuple[LayerRank, ...] = Field(
        default=(),
        description="what is different in some layers: entries with `name` (with * and ?) or `role` (attention, mlp, "
        "embedding, head) or both, and a `rank`, or `keep-whole: true`; the last that selects a layer holds",
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        layers, whole = linear_layers(model)
        found = {layer: self.options(layer, entry) for layer, entry in self.entries(layers, model, context).items()}
        treated = {layer: options for layer, options in found.items() if isinstance(options, list)}
        whole |= {layer.name: options for layer, options in found.items() if isinstance(options, str)}
        inputs = LayerInputs.of(self.name, self.mask, model, context)
        chosen = self.chosen(treated, model, context, inputs)
        context.notice(_notice(self.name, treated, chosen, whole))
        names, errors = Names(model), dict[str, tuple[float, float]]()
        thin = {layer: option for layer, option in chosen.items() if option.form is not None}
        for wave in walk_layers(list(thin), model, context, inputs, method=self, with_float=self.refit):
            factors = wave.once(partial(self.factors, wave, thin, context))
            for layer in wave.layers:
                form = thin[layer].form
                assert form is not None
                left, right, error = (factors[f"{layer.name} {part}"] for part in ("left", "right", "error"))
                errors[layer.name] = float(error[0]), float(error[1])
                two_layers.write(layer, form, Factors(left, right), names, self.name)
        if self.refit and errors:
            context.notice(summary(self.name, errors))
        return bool(thin)

    def entries(
        self, layers: Sequence[LinearLayer], model: ir.Model, context: CompileContext
    ) -> dict[LinearLayer, LayerRank | None]:
        """The entry of `layers` that holds for each layer."""
        known = roles(model)
        for role in idle_roles(model, self.layers, known, self.name):
            context.notice(f"no layer of this model has the role {role} (option layers of {self.name})")
        return {
            layer: next((e for e in reversed(self.layers) if e.selects(layer.node, known.get(layer.name))), None)
            for layer in layers
        }

    def options(self, layer: LinearLayer, entry: LayerRank | None) -> list[Thin] | str:
        """What can become of a layer, or why it stays whole."""
        if entry is not None and entry.keep_whole:
            return f"kept whole by the option layers ({entry})"
        forms, weights = thin_forms(layer), int(np.prod(layer.shape))
        if not forms:
            return "it is a depthwise convolution"
        wanted = entry.rank if entry is not None else None
        if wanted is not None and wanted > max(form.full for form in forms):
            raise RecipeError(
                f"rank {wanted} is larger than the matrix of '{layer.name}', {layer.shape[1]} x {layer.shape[2]}",
                where=f"{self.name}.layers",
                hint=f"give {min(layer.shape[1:])} at most; that keeps all of it, and takes more operations",
            )
        found = [
            Thin(form, rank, form.size(rank))
            for form in forms
            for rank in ([wanted] if wanted is not None else range(self.multiple, form.full, self.multiple))
            if form.size(rank) < weights and form.work(rank) < weights
        ]
        if not found:
            return f"two of rank {wanted or self.multiple} have no fewer weights or operations"
        return found if wanted is not None else [*found, Thin(None, 0, weights)]

    def chosen(
        self,
        treated: Mapping[LinearLayer, Sequence[Thin]],
        model: ir.Model,
        context: CompileContext,
        inputs: LayerInputs,
    ) -> dict[LinearLayer, Thin]:
        """What each layer becomes: that of the least errors within the budget."""
        weights = sum(int(np.prod(layer.shape)) for layer in treated)
        least = sum(min(o.weights for o in options) for options in treated.values())
        if least > self.keep * weights:
            raise RecipeError(
                f"no ranks leave less than {least / weights:.1%} of the weights, and {self.keep:.1%} are asked for",
                where=f"{self.name}.keep",
                hint="keep more, or let ranks be multiples of less (option multiple)",
            )
        forms = {
            layer: list(dict.fromkeys(o.form for o in options if o.form is not None))
            for layer, options in treated.items()
            if len(options) > 1
        }
        errors = block_errors(
            forms, model, context, inputs, by=self, trial=Trial(self.method, self.damping, self.keep, self.samples)
        )
        costs = [
            [Option(o.weights, errors[layer, o.form][o.rank] if o.form and len(options) > 1 else 0.0) for o in options]
            for layer, options in treated.items()
        ]
        taken = allocate(costs, self.keep * weights)
        return {layer: options[i] for (layer, options), i in zip(treated.items(), taken, strict=True)}

    def factors(self, wave: Wave, thin: Mapping[LinearLayer, Thin], context: CompileContext) -> dict[str, Array]:
        """The two factors of the layers of one wave, and the errors of their outputs before and after refitting."""
        found: dict[str, Array] = {}
        for layer in wave.layers:
            form, rank = thin[layer].form, thin[layer].rank
            assert form is not None
            weight = context.device.put(layer.matrix())
            gram = wave.gram(layer)
            factors = decomposition(form, weight, gram, self.method, self.damping).truncated(rank)
            errors = [relative_error(weight, form.expanded(factors).product, gram)]
            if self.refit:
                factors = refitted(form, factors, weight, gram)
            errors.append(relative_error(weight, form.expanded(factors).product, gram))
            factors = evened(factors, context.device)
            parts = {"left": fetch(factors.left), "right": fetch(factors.right), "error": np.array(errors)}
            found |= {f"{layer.name} {part}": array for part, array in parts.items()}
        return found


@dataclass(frozen=True)
class Thin:
    """What can become of a layer.

    Attributes:
        form: how it is written as two; None where it stays whole.
        weights: how many there are then.
    """

    form: ThinForm | None
    rank: int
    weights: int


def _notice(
    method: str,
    treated: Mapping[LinearLayer, Sequence[Thin]],
    chosen: Mapping[LinearLayer, Thin],
    whole: Mapping[str, str],
) -> str:
    """How many layers became thin and what that saves, and why others are whole."""
    thin = [option for option in chosen.values() if option.form is not None]
    weights = sum(int(np.prod(layer.shape)) for layer in treated)
    text = f"{method}: no layer becomes two thin ones"
    if thin:
        left = sum(option.weights for option in chosen.values()) / weights
        ranks = sorted({option.rank for option in thin})
        strips = sum(isinstance(option.form, Strips) for option in thin)
        text = f"{method}: {len(thin)} of {count(len(treated), 'layer')} become two thin ones, of rank "
        text += " to ".join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))
        text += f" ({strips} of them of a column and a row)" if strips else ""
        text += f", which leaves {left:.1%} of the weights of these {len(treated)}"
    return text + (f". Left whole: {by_reason(whole)}" if whole else "")
