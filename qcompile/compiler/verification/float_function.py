"""Did passes that promise to keep the float function keep it? Checked on one sample, once for a run of passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.description import describe
from qcompile.compiler.graph import name_of
from qcompile.errors import PassError

if TYPE_CHECKING:
    from qcompile.compiler.context import CompileContext
    from qcompile.compiler.passes import Pass

Array = npt.NDArray[Any]

TOLERANCE = 1e-5
"""Largest deviation of an output: root mean square, relative to that of the output."""

_WORST = 1e-3
"""Largest deviation of one element, relative to the largest: rounding that a deep model amplifies at a few
places stays below, a wrong border does not."""

_SMALLEST_MAGNITUDE = 0.1
"""Outputs that are smaller everywhere are compared as if they reached this: a saturated sigmoid has no digits."""

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_JUMPING = {
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "NonMaxSuppression",
}
_JUMPING |= {"NonZero", "Round", "Sign", "TopK", "Unique"}
"""Operators that turn a rounding error into another answer."""


def check_float_function(before: ir.Model, after: ir.Model, passes: Sequence[Pass], context: CompileContext) -> None:
    """Compare the outputs of two states of a model, on the first held-out sample or a made-up one.

    A model that cannot be compared (it does not run on the sample, or draws random numbers) gets a
    notice; so does one whose answer jumps (a TopK, an ArgMax), where a deviation proves nothing.

    Args:
        before, after: the model before and after `passes`; neither is changed.

    Raises:
        PassError: an output differs by more than TOLERANCE; names the first pass that is to blame.
    """
    jumping = {n.op_type for n in before.graph.all_nodes() if n.op_type in _JUMPING and not _reads_integers(n)}
    if any(_is_random(n) for n in before.graph.all_nodes()):
        context.notice("the float function was not checked after each phase: the model draws random numbers")
        return
    sample = context.held_out[0] if context.held_out else _made_up(before, context.seed)
    try:
        expected = _outputs(before, sample)
    except Exception as error:
        context.notice(f"the float function was not checked after each phase: {_first_line(error)}")
        return
    fault = _difference(expected, after, sample)
    if fault is None:
        return
    if jumping:
        context.notice(f"after '{passes[-1].name}' {fault}; {', '.join(sorted(jumping))} may have tipped")
        return
    guilty = _first_guilty(before, passes, context, expected, sample)
    raise PassError(
        f"pass '{guilty}' changed the float function: {fault}",
        hint="this is a defect of the pass; leave the pass out of the recipe and report it",
    )


def _is_random(node: ir.Node) -> bool:
    """The node draws numbers; a Dropout does where it is told whether it trains."""
    return node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2)


def _reads_integers(node: ir.Node) -> bool:
    """Positions and lengths have no rounding errors that could tip a comparison."""
    dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    return dtype is not None and not dtype.is_floating_point()


def _first_guilty(
    before: ir.Model,
    passes: Sequence[Pass],
    context: CompileContext,
    expected: dict[str, Array],
    sample: Mapping[str, Array],
) -> str:
    """Run the passes again, one by one, until the outputs differ."""
    if len(passes) == 1:
        return passes[0].name
    model, scratch = before.clone(), dataclasses.replace(context, notices=[])
    for current in passes:
        if current.run(model, scratch) and _difference(expected, model, sample) is not None:
            return current.name
    return passes[-1].name


def _difference(expected: dict[str, Array], model: ir.Model, sample: Mapping[str, Array]) -> str | None:
    """What is wrong with the outputs of `model`, or None."""
    try:
        got = _outputs(model, sample)
    except Exception as error:
        return f"the model no longer runs: {_first_line(error)}"
    for name, a in expected.items():
        if name not in got or got[name].shape != a.shape or got[name].dtype != a.dtype:
            return f"output '{name}' is not what it was"
        if a.dtype.kind != "f":
            if not np.array_equal(a, got[name]):
                return f"output '{name}' differs"
            continue
        b, a = got[name].astype(np.float64), a.astype(np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return f"output '{name}' differs in what is finite"
        a, b = a[np.isfinite(a)], b[np.isfinite(a)]
        coarser = max(1.0, float(np.finfo(got[name].dtype).eps) / float(np.finfo(np.float32).eps))
        for what, size, allowed in (("", _root_mean_square, TOLERANCE), ("somewhere ", _largest, _WORST)):
            deviation = size(a - b) / max(size(a), _SMALLEST_MAGNITUDE)
            if deviation > allowed * coarser:
                return f"output '{name}' deviates {what}by {deviation:.1e}, {allowed * coarser:.0e} is allowed"
    return None


def _root_mean_square(a: Array) -> float:
    return float(np.sqrt(np.mean(a**2))) if a.size else 0.0


def _largest(a: Array) -> float:
    return float(np.abs(a).max(initial=0.0))


def _outputs(model: ir.Model, sample: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of `model` on the CPU. Weights are fed, not serialized: opening the session then costs milliseconds."""
    import onnxruntime

    proto, weights = describe(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {i.name for i in session.get_inputs()}
    feeds = {n: np.asarray(a) for n, a in sample.items() if n in inputs}
    for value in weights:
        assert value.const_value is not None
        feeds.setdefault(name_of(value), value.const_value.numpy())
    names = [o.name for o in session.get_outputs()]
    return {n: o for n, o in zip(names, session.run(names, feeds), strict=True) if isinstance(o, np.ndarray)}


def _made_up(model: ir.Model, seed: int) -> dict[str, Array]:
    """One sample of normal numbers, zeros for integers; unknown dimensions are 1."""
    rng = np.random.default_rng(seed)
    sample: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.is_initializer() or value.dtype is None or value.shape is None:
            continue
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in value.shape]
        drawn = rng.standard_normal(shape) if value.dtype.is_floating_point() else np.zeros(shape)
        sample[name_of(value)] = np.asarray(drawn).astype(value.dtype.numpy())
    return sample


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
