"""Random graphs of opsets 13 to 21 through the prepare passes and through all of int8-static."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.frontends.builtin_recipes import find_recipe
from tests.sweep.harness import PREPARE, RECIPE, compile_in_memory, eager_target, session, sqnr, unaccounted
from tests.sweep.random_graphs import graphs, samples

EXACT = 110.0
"""dB: float rounding alone; 1e-5 of the magnitude is 100 dB."""

INT8 = 20.0
"""dB: what a graph of a dozen 8-bit operations keeps at the very least (a single one keeps about 40)."""

OTHER_FORMATS = (
    ("place-int8.activation=int8",),
    ("place-int8.activation=int8", "place-int8.symmetric=true"),
    ("place-int8.weight=uint8",),
    ("place-int8.per-channel=false",),
    ("place-int8.activation=int16",),
)

sweep = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def outputs(data: bytes, feeds: list[dict[str, np.ndarray]], *, optimized: bool) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """All samples' values of each output, in one array."""
    run = session(data, optimized=optimized)
    wanted = {i.name for i in run.get_inputs()}
    results = [run.run(None, {n: a for n, a in feed.items() if n in wanted}) for feed in feeds]
    names = [o.name for o in run.get_outputs()]
    return {n: np.concatenate([r[i].ravel() for r in results]) for i, n in enumerate(names)}


@sweep
@given(model=graphs())
def test_prepare_keeps_the_function(model: onnx.ModelProto) -> None:
    feeds = samples(model)
    compiled = compile_in_memory(model, feeds, PREPARE)
    assert not [n for n in compiled.context.notices if "float function" in n], "every graph can be checked"
    expected = outputs(model.SerializeToString(), feeds, optimized=False)
    for name, got in outputs(compiled.data, feeds, optimized=True).items():
        assert sqnr(expected[name], got) > EXACT


@sweep
@given(model=graphs())
def test_int8_static_loads_is_close_and_accounts_for_every_operator(model: onnx.ModelProto) -> None:
    feeds = samples(model)
    expected = outputs(model.SerializeToString(), feeds, optimized=False)
    compiled = compile_in_memory(model, feeds, RECIPE, eager_target())
    assert unaccounted(compiled) == []
    for name, got in outputs(compiled.data, feeds, optimized=True).items():
        assert np.isfinite(got).all()
        assert sqnr(expected[name], got) > INT8


@settings(sweep, max_examples=60)
@given(model=graphs(), per_token=st.booleans())
def test_int8_dynamic_needs_no_samples_and_is_close(model: onnx.ModelProto, per_token: bool) -> None:
    feeds = samples(model)
    expected = outputs(model.SerializeToString(), feeds, optimized=False)
    recipe = find_recipe("int8-dynamic").with_overrides([f"place-dynamic.per-token={per_token}".lower()])
    compiled = compile_in_memory(model, feeds, recipe.passes(), eager_target())
    assert unaccounted(compiled) == []
    for name, got in outputs(compiled.data, feeds, optimized=True).items():
        assert sqnr(expected[name], got) > INT8


@settings(sweep, max_examples=60)
@given(model=graphs(), options=st.sampled_from(OTHER_FORMATS))
def test_other_formats_load_and_are_close(model: onnx.ModelProto, options: tuple[str, ...]) -> None:
    feeds = samples(model)
    expected = outputs(model.SerializeToString(), feeds, optimized=False)
    recipe = find_recipe("int8-static").with_overrides(
        ["calibrate.method=min-max", "upgrade-opset.minimum=21", *options]
    )
    compiled = compile_in_memory(model, feeds, recipe.passes(), eager_target())
    for name, got in outputs(compiled.data, feeds, optimized=True).items():
        assert sqnr(expected[name], got) > INT8


def test_one_weight_per_channel() -> None:
    """A depthwise 1x1 convolution with bias: each channel's range is a single number, and not an empty one."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,4,4] x, bool condition) => (float[1,2,4,4] y)
        <float[2,1,1,1] w = {0.5, -2.0}, float[2] b = {0.25, 1.0}>
        { y = Conv <group = 2> (x, w, b) }"""
    )
    feeds = samples(model)
    expected = outputs(model.SerializeToString(), feeds, optimized=False)
    compiled = compile_in_memory(model, feeds, RECIPE, eager_target())
    assert compiled.context.plan.units
    assert sqnr(expected["y"], outputs(compiled.data, feeds, optimized=True)["y"]) > INT8


@settings(sweep, max_examples=20)
@given(model=graphs())
def test_the_same_input_gives_the_same_bytes(model: onnx.ModelProto) -> None:
    feeds = samples(model)
    assert (
        compile_in_memory(model, feeds, RECIPE, eager_target()).data
        == compile_in_memory(model, feeds, RECIPE, eager_target()).data
    )
