from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.provenance import PASS, SOURCE
from qcompile.compiler.statistics import RANGE
from qcompile.errors import PassError, RecipeError
from qcompile.passes.prepare.infer_shapes import InferShapes
from qcompile.passes.prepare.unique_names import UniqueNames
from tests.passes.harness import context, model_of


class Labelled:
    """A name from elsewhere than the class itself: passes of this file are not registered."""

    label: str

    @property
    def name(self) -> str:
        return self.label


class Wish(Labelled, Pass):  # type: ignore[misc]
    phase: ClassVar[Phase] = Phase.QUANTIZE
    label: str = "wish"
    value: str = "x"

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        return [StatisticRequest(self.value, RANGE)]

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        return False


class Destroy(Wish):
    phase: ClassVar[Phase] = Phase.TRANSFORM
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})


class Measure(Destroy):
    measures: ClassVar[bool] = True


class Listen(Wish):
    phase: ClassVar[Phase] = Phase.ANALYZE
    seen: list[list[str]] = []  # noqa: RUF012

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        return ()

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        self.seen.append([r.value for r in context.requests])
        return False


class Scale(Labelled, Pass):  # type: ignore[misc]
    """Multiply the first node's output: changes the float function by `factor`, and claims not to."""

    phase: ClassVar[Phase] = Phase.PREPARE
    float_equivalent: ClassVar[bool] = True
    factor: float = 1.0
    label: str = "scale"

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        value = model.graph[0].outputs[0]
        factor = ir.Value(name=f"{self.label}_f", const_value=ir.tensor(np.float32(self.factor)))
        model.graph.register_initializer(factor)
        made = ir.node("Mul", [value, factor])
        made.outputs[0].name = f"{self.label}_out"
        uses = [(u.node, u.idx) for u in value.uses() if u.node is not made]
        model.graph.insert_after(model.graph[0], made)
        for node, index in uses:
            node.replace_input_with(index, made.outputs[0])
        return True


class Dangle(Scale):
    """Leave a reader of a value that no node makes."""

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        model.graph[1].replace_input_with(0, ir.Value(name="nowhere"))
        return True


class HonestScale(Scale):
    float_equivalent: ClassVar[bool] = False


def small(middle: str = "h = Relu (x)") -> ir.Model:
    return model_of(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N,3] x) => (float[N,3] y) {{ {middle} y = Neg (h) }}'
    )


def test_a_missing_fact_names_the_step() -> None:
    with pytest.raises(RecipeError, match="step 1, pass 'infer-shapes' needs unique names"):
        run_pipeline([InferShapes()], small(), context())


def test_records_say_what_happened() -> None:
    seen: list[str] = []
    records = run_pipeline(
        [UniqueNames(), InferShapes(), InferShapes()], small(), context(), lambda p, m: seen.append(p.name)
    )
    assert [r.modified for r in records] == [False, True, False]
    assert [(r.nodes_before, r.nodes_after) for r in records] == [(2, 2)] * 3
    assert seen == ["unique-names", "infer-shapes", "infer-shapes"]


def test_requests_are_pooled_up_to_what_invalidates_them() -> None:
    listen = Listen()
    listen.seen.clear()
    run_pipeline([listen, Destroy(value="a"), Wish(value="b")], small(), context())
    run_pipeline([listen, Wish(value="a"), Wish(value="b"), Wish(value="a")], small(), context())
    assert listen.seen == [["a"], ["a", "b"]]


def test_an_invalid_graph_names_the_pass() -> None:
    with pytest.raises(PassError, match=r"pass 'dangle' left an invalid graph: .*'nowhere'"):
        run_pipeline([Dangle(label="dangle")], small(), context())


def test_made_nodes_get_names_and_provenance() -> None:
    model = small()
    run_pipeline([HonestScale(label="scale", factor=2.0)], model, context())
    made = model.graph[1]
    assert made.name
    assert made.metadata_props[PASS] == "scale"
    assert made.metadata_props[SOURCE] == "Relu_0"


def test_a_changed_float_function_names_the_guilty_pass() -> None:
    passes = [Scale(label="first"), Scale(label="second", factor=1.001), Scale(label="third")]
    with pytest.raises(PassError, match=r"pass 'second' changed the float function: output 'y' deviates by 1\.0e-03"):
        run_pipeline(passes, small(), context())


def test_a_kept_float_function_passes() -> None:
    on = context()
    run_pipeline([Scale(label="first"), Scale(label="second", factor=1 + 1e-6)], small(), on)
    assert not on.notices


def test_a_pass_that_claims_nothing_is_not_checked() -> None:
    run_pipeline([HonestScale(factor=2.0)], small(), context())


class Edit(Scale):
    float_equivalent: ClassVar[bool] = False
    changes_function: ClassVar[bool] = True


class Rename(Wish):
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        model.graph.name = "lowered"
        return True


def test_what_an_edit_leaves_is_kept_for_the_proofs() -> None:
    for passes in ([Edit(label="edit")], [Edit(label="edit"), Wish()], [Edit(label="edit"), Rename()]):
        made, model = context(), small()
        run_pipeline(passes, model, made)
        assert made.edits == ["edit"]
        assert made.unquantized is not None
        assert made.unquantized.graph.name != "lowered"
        assert "Mul" in {node.op_type for node in made.unquantized.graph}
    untouched = context()
    run_pipeline([Rename()], small(), untouched)
    assert (untouched.edits, untouched.unquantized) == ([], None)


def test_the_held_out_sample_is_what_counts() -> None:
    on = context()
    on.held_out = [{"x": np.zeros((1, 3), np.float32)}]
    run_pipeline([Scale(factor=2.0)], small(), on)
    on.held_out = [{"x": np.ones((1, 3), np.float32)}]
    with pytest.raises(PassError):
        run_pipeline([Scale(factor=2.0)], small(), on)


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        ("r = RandomNormalLike (x) h = Add (x, r)", "draws random numbers"),
        ("a = Exp (x) f = Floor (a) h = Mul (f, a)", "Floor may have tipped"),
    ],
)
def test_what_cannot_be_compared_is_a_notice(middle: str, said: str) -> None:
    on = context()
    run_pipeline([Scale(factor=1.5)], small(middle), on)
    assert said in on.notices[0]


def test_a_comparison_of_positions_excuses_nothing() -> None:
    model = small("a = Exp (x) s = Shape (x) e = Greater (s, s) f = Cast <to = 1> (e) t = ReduceSum (f) h = Add (a, t)")
    run_pipeline([UniqueNames(), InferShapes()], model, context())
    with pytest.raises(PassError, match="changed the float function"):
        run_pipeline([Scale(factor=1.5)], model, context())


def test_statistics_for_the_copies_of_a_pass_that_measures() -> None:
    """A pass that invalidates statistics ends a pool, but where it measures, its copies need what comes behind it."""
    for between, first_pool in ((Destroy(value="a"), ["a"]), (Measure(value="a"), ["a", "b"])):
        one, two = Listen(label="one"), Listen(label="two")
        run_pipeline([one, between, two, Wish(value="b")], small(), context())
        assert (one.seen, two.seen) == ([first_pool], [["b"]])


def test_a_model_that_does_not_run_is_a_notice() -> None:
    on = context()
    on.held_out = [{"x": np.zeros((1, 4), np.float32)}]
    run_pipeline([Scale(factor=1.5)], small(), on)
    assert "was not checked" in on.notices[0]


class Lower(Wish):
    """Reads a copy of the weight in the weight's place."""

    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        add_initializer(model.graph, "w_codes", np.ones(3, np.float32))
        next(iter(model.graph)).replace_input_with(1, model.graph.initializers["w_codes"])
        return True


def test_what_a_lowering_no_longer_reads_goes_away() -> None:
    """Not only behind Q/DQ: a recipe of 4-bit weights must not carry the float ones along."""
    model = model_of("""<ir_version: 9, opset_import: ["": 17]>
        g (float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""")
    run_pipeline([Lower()], model, context())
    assert list(model.graph.initializers) == ["w_codes"]
