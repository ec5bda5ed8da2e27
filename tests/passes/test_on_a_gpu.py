"""Methods that solve for weights, on a pretended GPU and on a real one: the results are the CPU's.

The pretended one refuses what lies in the wrong place. For the real one: `pytest tests/passes/test_on_a_gpu.py -m gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.block_walker import BlockWalker
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FORMATS
from qcompile.compiler.histogram import HISTOGRAM
from qcompile.compiler.passes import Pass, StatisticRequest
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import RANGE
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.quantize.ada_round import AdaRound
from qcompile.passes.quantize.auto_round import AutoRound
from qcompile.passes.quantize.gptq import Gptq
from qcompile.passes.quantize.hqq import Hqq
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from qcompile.passes.quantize.search_clip import SearchClip
from qcompile.passes.transform.low_rank import LowRank
from qcompile.passes.transform.sparsegpt import SparseGpt
from qcompile.passes.transform.wanda import Wanda
from qcompile.runtime.device import Device
from tests.compiler.walks import QUANTIZED, ready
from tests.gpu.machine import why_not_on_gpu
from tests.passes.harness import NAMED, assert_close, model_of, outputs
from tests.passes.llama import llama
from tests.passes.quantize.test_ada_round import narrow
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, LINEAR, LINEAR_WEIGHTS, images, rows
from tests.passes.quantize.test_gptq import blocks, sentences
from tests.pretend_gpu import OnDevice, pretend_gpu
from tests.sweep.harness import Samples, eager_target

State = tuple[ir.Model, CompileContext]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "pretended":
        with pretend_gpu(monkeypatch):
            yield
        return
    if reason := why_not_on_gpu():
        pytest.skip(reason)
    yield


def convolutions() -> State:
    return ready(model_of(IMAGES, dict(IMAGE_WEIGHTS)), images(4), QUANTIZED, narrow(4))


def decoder(kind: str = "uint4") -> State:
    return blocks(llama(1), sentences(4, length=12), QuantSpec(FORMATS[kind], symmetric=kind == "int4"))


def weights_alone(**options: Any) -> State:
    return ready(llama(1), sentences(4, length=12), [*NAMED, PlaceWeights(block_size=16, **options), RoundToNearest()])


def float_decoder() -> State:
    return ready(llama(1), sentences(4, length=12), NAMED)


def float_convolutions() -> State:
    return ready(model_of(IMAGES, dict(IMAGE_WEIGHTS)), images(4), NAMED)


CASES: dict[str, tuple[Callable[[], State], Pass]] = {
    "gptq of convolutions": (convolutions, Gptq()),
    "gptaq": (decoder, Gptq(alpha=0.5)),
    "gptq to NF4": (lambda: weights_alone(format="nf4"), Gptq()),
    "ada-round": (convolutions, AdaRound(iterations=8, samples=4)),
    "auto-round": (lambda: decoder("int4"), AutoRound(iterations=4)),
    "search-clip": (lambda: weights_alone(format="nvfp4"), SearchClip()),
    "hqq": (lambda: weights_alone(symmetric=False), Hqq()),
    "wanda": (float_decoder, Wanda(pattern="unstructured")),
    "sparsegpt": (float_decoder, SparseGpt()),
    "sparsegpt of convolutions": (float_convolutions, SparseGpt()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("on_gpu")
def test_a_pass_finds_what_it_finds_on_the_cpu(case: str) -> None:
    make, tested = CASES[case]
    states = []
    for device in Device:
        model, context = make()
        context.device = device
        tested.run(model, context)
        states.append((model, context))
    assert_alike(*states)


@pytest.mark.parametrize("make", [float_decoder, float_convolutions])
@pytest.mark.usefixtures("on_gpu")
def test_thin_layers_compute_what_those_of_the_cpu_do(make: Callable[[], State]) -> None:
    """Directions have no sign, so the two weights are told apart by their product alone."""
    found = []
    for device in Device:
        model, context = make()
        context.device = device
        assert LowRank(multiple=1).run(model, context)
        assert context.calibration is not None
        found.append(outputs(model, dict(next(iter(context.calibration)))))
    assert_close(*found, tolerance=1e-3)


@pytest.mark.parametrize("recipe", ["int4-awq", "int8-accurate"])
@pytest.mark.usefixtures("on_gpu")
def test_a_recipe_decides_as_on_the_cpu(recipe: str) -> None:
    """Searched scales of channels, forms of layers and biases."""
    states = []
    for device in Device:
        feeds = rows(4)
        model = model_of(LINEAR, dict(LINEAR_WEIGHTS))
        context = CompileContext(eager_target(), Path("unused"), Samples(feeds), held_out=[feeds[0]], device=device)
        run_pipeline(find_recipe(recipe).passes(), model, context)
        states.append((model, context))
    assert_alike(*states)


@pytest.mark.usefixtures("on_gpu")
def test_statistics_are_those_of_the_cpu() -> None:
    """On a real GPU they are computed and counted there."""
    tables = []
    for device in Device:
        model = model_of(IMAGES, dict(IMAGE_WEIGHTS))
        context = CompileContext(eager_target(), Path("unused"), Samples(images(4)), device=device)
        run_pipeline(NAMED, model, context)
        context.requests = [StatisticRequest(name, RANGE) for name in ("x", "r0", "s", "y")]
        Calibrate(method="entropy").run(model, context)
        tables.append(context.statistics)
    expected, found = tables
    assert found.samples == expected.samples
    for name, right in expected.vectors[RANGE.kind].items():
        np.testing.assert_allclose(found.vectors[RANGE.kind][name], right, rtol=1e-4, atol=1e-5)
        counts, wanted = (t.vectors[HISTOGRAM.kind][name][1:] for t in tables)
        assert np.abs(counts - wanted).sum() <= 0.01 * wanted.sum(), "a value at the border of two bins"


@pytest.mark.gpu
@pytest.mark.parametrize("on_gpu", ["real"], indirect=True)
@pytest.mark.usefixtures("on_gpu")
def test_what_a_block_gives_stays_on_the_device() -> None:
    import torch

    model, context = convolutions()
    context.device = Device.CUDA
    for visit in BlockWalker(model, context, images(3)):
        for arrays in (*visit.inputs, *visit.float_outputs, *visit.run(visit.lowered(), visit.inputs)):
            assert all(isinstance(a, torch.Tensor) and a.is_cuda for a in arrays.values())


def assert_alike(on_cpu: State, on_gpu: State) -> None:
    """The same codes, but for ties, and the same constants to rounding."""
    (expected, other), (model, context) = on_cpu, on_gpu
    assert set(other.notices) <= set(context.notices)
    assert context.plan.weights.keys() == other.plan.weights.keys()
    for key, right in other.plan.weights.items():
        found = context.plan.weights[key]
        assert (found.codes.astype(float) != right.codes.astype(float)).mean() < 0.02, f"{key}: more than ties"
        np.testing.assert_allclose(found.params.scale, right.params.scale, rtol=1e-4)
        np.testing.assert_allclose(found.params.zero_point, right.params.zero_point, atol=1e-3)
    for name, value in expected.graph.initializers.items():
        constant = model.graph.initializers[name].const_value
        assert constant is not None
        assert value.const_value is not None
        array, wanted = constant.numpy(), value.const_value.numpy()
        assert array.dtype == wanted.dtype
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, wanted, rtol=1e-3, atol=1e-4)


def test_the_pretended_device_refuses_what_a_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    with pretend_gpu(monkeypatch):
        x = Device.CUDA.put(np.ones((2, 2), np.float32))
        assert isinstance(x, OnDevice)
        with pytest.raises(AssertionError, match="add gets tensors of the device and of the CPU"):
            x + torch.ones(2, 2)
        with pytest.raises(AssertionError, match="index gets tensors of the device and of the CPU"):
            torch.ones(2)[Device.CUDA.put(np.array([0, 1]))]
        with pytest.raises((TypeError, RuntimeError)):
            np.asarray(x)
        np.testing.assert_array_equal((x @ x).cpu().numpy(), np.full((2, 2), 2))
