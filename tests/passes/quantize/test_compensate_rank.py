"""compensate-rank: the branch is the truncated SVD of what the codes miss, and every form gains by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import nodes
from qcompile.compiler.params import dequantize
from qcompile.compiler.printer import print_model
from qcompile.compiler.recipe import Step
from qcompile.compiler.simulation import lowered_copy
from qcompile.errors import DataError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.quantize.compensate_rank import CompensateRank
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from qcompile.passes.transform.low_rank_branch import Metric
from qcompile.runtime.device import Device
from tests.golden import assert_golden
from tests.passes.harness import NAMED, assert_close, context, model_of, outputs, run
from tests.passes.int8 import Lowered, compiled, head, normal
from tests.passes.llama import llama
from tests.passes.low_rank import LAYERS, branch, together, with_step
from tests.passes.samples import Samples
from tests.pretend_gpu import pretend_gpu
from tests.sweep.harness import eager_target, session, sqnr
from tests.zoo import MiniLM

INT4 = [p for p in find_recipe("int4-rtn").passes() if p.phase.value == "lower"]
ONE = head(21) + "g (float[1,S,32] x) => (float[1,S,24] y) { y = MatMul (x, w) }"
ONE_WEIGHT = {"w": normal(32, 24)}


def compensated(
    text: str, weights: dict[str, Any], samples: list[Sample], device: Device = Device.CPU, **options: Any
) -> tuple[ir.Model, CompileContext]:
    """A model whose layers have 4-bit weights of nearest codes, behind the pass."""
    model, on = model_of(text, weights), context(eager_target())
    on.calibration, on.device = Samples(*samples) if samples else None, device
    steps = [*NAMED, PlaceWeights(format="int4"), RoundToNearest(), CompensateRank(**options)]
    run(model, *steps, on=on)
    on.following = INT4
    return model, on


@pytest.mark.parametrize("text", LAYERS)
def test_the_float_function_stays(text: str) -> None:
    x = normal(2, 5, 8) if "B,S" in text else normal(5, 8)
    model, on = compensated(text, LAYERS[text], [{"x": x}], rank=1)
    original = outputs(model_of(text, LAYERS[text]), {"x": x})
    assert_close(original, outputs(model, {"x": x}))
    assert on.unquantized is not None
    assert_close(original, outputs(on.unquantized, {"x": x}))
    unit = next(iter(on.plan.units.values()))
    assert unit.output.endswith("_rest"), "the unit ends in front of the sum"
    assert any(unit.output == v.name for node in nodes(on.unquantized) for v in node.outputs)


def error_of(samples: list[Sample], **options: Any) -> tuple[float, float]:
    """Of one layer's output, without a branch and with one, relative to its energy."""
    model, on = compensated(ONE, ONE_WEIGHT, samples, **options)
    weight = on.plan.weights["w", "MatMul_0"]
    missed = ONE_WEIGHT["w"] - dequantize(weight.codes, weight.params)
    inner, outer = branch(model, "MatMul_0")
    x = np.concatenate([sample["x"][0] for sample in samples]).astype(np.float64)
    energy = float(np.square(x @ ONE_WEIGHT["w"]).sum())
    return tuple(float(np.square(x @ e).sum()) / energy for e in (missed, missed - inner @ outer))  # type: ignore[return-value]


def test_closed_form() -> None:
    """Every weight alike: the truncated SVD of W - Q, without samples."""
    model, on = compensated(ONE, ONE_WEIGHT, [], rank=3, metric="weights")
    weight = on.plan.weights["w", "MatMul_0"]
    u, sigma, v = np.linalg.svd(ONE_WEIGHT["w"] - dequantize(weight.codes, weight.params), full_matrices=False)
    inner, outer = branch(model, "MatMul_0")
    np.testing.assert_allclose(inner @ outer, (u[:, :3] * sigma[:3]) @ v[:3], atol=1e-6)
    share = 1 - np.square(sigma[3:]).sum() / np.square(sigma).sum()
    assert f"make good {share:.0%} of what their codes miss" in on.notices[0]


def test_the_more_of_the_inputs_it_knows_the_less_is_missed() -> None:
    metrics: tuple[Metric, ...] = ("weights", "inputs", "outputs")
    errors = {metric: error_of(together(), rank=4, metric=metric) for metric in metrics}
    nearest = errors["weights"][0]
    assert nearest > errors["weights"][1] > errors["inputs"][1] > errors["outputs"][1]
    assert errors["outputs"][1] < 0.5 * nearest


@pytest.mark.usefixtures("one_thread")
def test_a_pretended_gpu_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu(monkeypatch):
        found = [branch(compensated(ONE, ONE_WEIGHT, together(), device, rank=4)[0], "MatMul_0") for device in Device]
    expected, got = (inner @ outer for inner, outer in found)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_golden() -> None:
    text = (
        head(21)
        + """g (float[1,S,32] x) => (float[1,S,2] y) {
        p = MatMul (x, w) a = Add (p, b) r = Relu (a) y = MatMul (r, u) }"""
    )
    weights = {"w": np.round(normal(32, 24), 1), "b": normal(24), "u": normal(24, 2)}
    before = model_of(text, weights)
    run(before, *NAMED)
    model, on = compensated(text, weights, together(count=1), rank=2)
    low = lowered_copy(model, on)
    parts = {"before": print_model(before), "after": print_model(model, provenance=True), "lowered": print_model(low)}
    assert_golden("passes/compensate-rank", "\n".join(f"# {name}\n{text}" for name, text in parts.items()))


def decoder(recipe: str, *options: str, **given: Any) -> Lowered:
    """A small decoder by a recipe, with the pass behind its last choice of codes where options are given."""
    found = find_recipe(recipe)
    if given:
        last = next(n for n in ("gptq", "round-to-nearest") if any(s.name == n for s in found.steps))
        found = with_step(found, last, Step(name="compensate-rank", options=given))
    return compiled(ir.to_proto(llama(1)), together(), *options, recipe=found)


@pytest.mark.parametrize(("recipe", "gain"), [("int4-rtn", 4), ("int4-gptq", 1), ("nf4", 4), ("int8-dynamic", 0.5)])
def test_every_form_gains(recipe: str, gain: float) -> None:
    plain, done = decoder(recipe), decoder(recipe, rank=4)
    exact = plain.expected["y"]
    assert sqnr(exact, done.optimized["y"]) > sqnr(exact, plain.optimized["y"]) + gain
    assert set(done.plan.units) == set(plain.plan.units)
    assert {k: w.codes.tobytes() for k, w in done.plan.weights.items()} == {
        k: w.codes.tobytes() for k, w in plain.plan.weights.items()
    }


def test_layers_whose_result_is_codes_have_no_branch() -> None:
    plain, done = decoder("int8-static"), decoder("int8-static", rank=4)
    whole_units = {name for name, unit in plain.plan.units.items() if unit.form.name == "FULL"}
    beside = {str(n.name).removesuffix("_low_rank_total") for n in nodes(done.model) if "rank_total" in str(n.name)}
    assert beside
    assert beside.isdisjoint(whole_units)


def test_a_branch_of_codes() -> None:
    """In 8 bits it makes good as much, for a quarter of the size."""
    plain, done = decoder("int4-rtn", rank=4), decoder("int4-rtn", rank=4, branch="int8")
    exact = plain.expected["y"]
    assert abs(sqnr(exact, done.optimized["y"]) - sqnr(exact, plain.optimized["y"])) < 0.3
    assert done.kernels().count("MatMulNBits") == 3 * plain.kernels().count("MatMulNBits")
    assert not any(name.endswith(("_inner", "_outer")) for name in done.plan.kept_float)


@pytest.mark.models
def test_a_layer_of_a_real_model_gains_at_equal_size() -> None:
    """On samples that it was not solved on."""
    proto, zoo = onnx.load(MiniLM().path()), MiniLM()
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    layer = [n for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in weights][10]
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(layer.input[0]))
    whole_model = session(proto.SerializeToString(), optimized=True)
    given = [{"x": whole_model.run([layer.input[0]], dict(sample))[0]} for sample in zoo.calibration(16)]
    text = head(21) + "g (float[B,S,384] x) => (float[B,S,1536] y) { y = MatMul (x, w) }"
    alone = ir.to_proto(model_of(text, {"w": weights[layer.input[1]]}))
    rtn, more = find_recipe("int4-rtn"), Step(name="compensate-rank", options={"rank": 16, "branch": "int8"})
    exact = np.concatenate([(sample["x"] @ weights[layer.input[1]]).ravel() for sample in given[12:]])
    found = {}
    for name, recipe, block in (("plain", rtn, 16), ("branched", with_step(rtn, "round-to-nearest", more), 32)):
        options = f"place-weights.block-size={block}", "place-weights.layers=[]"
        done = compiled(alone, given[:12], *options, recipe=recipe)
        opened = session(done.data, optimized=True)
        got = np.concatenate([opened.run(None, dict(sample))[0].ravel() for sample in given[12:]])
        found[name] = sqnr(exact, got), len(done.data)
    (plain, plain_size), (branched, size) = found["plain"], found["branched"]
    assert size < plain_size
    assert branched > plain + 1


def test_an_interrupted_walk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.passes.transform import low_rank_branch

    def once(checkpoint: Path | None, resume: bool = False) -> ir.Model:
        model, on = llama(1), context(eager_target())
        on.calibration, on.checkpoint, on.resume = Samples(*together()), checkpoint, resume
        run(model, *NAMED, PlaceWeights(format="int4"), RoundToNearest(), CompensateRank(rank=4), on=on)
        return model

    whole_run = print_model(once(None))
    solved, calls = low_rank_branch.BranchingPass.solved, [0]

    def stops(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return solved(*given)

    monkeypatch.setattr(low_rank_branch.BranchingPass, "solved", stops)
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "checkpoint")
    assert print_model(once(tmp_path / "checkpoint", resume=True)) == whole_run
    assert calls[0] < 5 + 7, "what was solved before the interruption is not solved again"


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        compensated(ONE, ONE_WEIGHT, [], rank=1)


def test_a_rank_too_large_leaves_the_layer_alone() -> None:
    model, on = compensated(ONE, ONE_WEIGHT, together(count=1), rank=8)
    assert [node.op_type for node in nodes(model)] == ["MatMul"]
    assert on.notices == [
        "compensate-rank: no branch beside MatMul_0: of rank 8 it would have more than half of the layer's weights"
    ]
