from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.provenance import PASS, channels_by, sources, stamp, stamp_channels, stamp_originals
from tests.passes.harness import model_of


def test_originals_are_their_own_source_and_get_names() -> None:
    model = model_of(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y) {'
        "h = Relu (x)"
        "y = If (c) <then_branch = a () => (float[2] p) { p = Neg (h) },"
        "            else_branch = b () => (float[2] q) { q = Abs (h) }>}"
    )
    model.graph[0].name = "mine"
    stamp_originals(model)
    assert [sources(n) for n in model.graph.all_nodes()] == [["mine"], ["If_1"], ["Neg_2"], ["Abs_3"]]
    model.graph[0].name = "renamed"
    stamp_originals(model)
    assert sources(model.graph[0]) == ["mine"], "a source is not lost by renaming"


def test_a_fused_node_has_all_sources_in_order_without_repetition() -> None:
    a, b, c = (ir.node("Relu", [ir.val("x")], name=n) for n in "abc")
    for node in (a, b):
        stamp_originals(ir.Model(ir.Graph([], [], nodes=[node], name="g"), ir_version=8))
    stamp(c, "first", [a, b, a])
    assert (sources(c), c.metadata_props[PASS]) == (["a", "b"], "first")
    stamp(c, "second", [c])
    assert (sources(c), c.metadata_props[PASS]) == (["a", "b"], "second")


def test_scaled_channels_are_remembered_by_what_is_made_of_a_node() -> None:
    a, b = (ir.node("Relu", [ir.val("x")], name=n) for n in "ab")
    stamp(a, "plain", [])
    assert channels_by(a) == ""
    stamp_channels(a, "smooth", [a])
    stamp(a, "later", [a])
    stamp(b, "lower", [b, a])
    assert (channels_by(a), channels_by(b), b.metadata_props[PASS]) == ("smooth", "smooth", "lower")


def test_nothing_known_is_empty() -> None:
    assert sources(ir.val("x")) == []
