"""Roles of layers, from structure alone: every node of these models is called by a number."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from qcompile.compiler.provenance import stamp_originals
from qcompile.compiler.roles import Role, roles
from qcompile.passes.prepare.fold_constants import FoldConstants
from qcompile.passes.prepare.inline_functions import InlineFunctions
from tests.passes.harness import NAMED, model_of, run
from tests.passes.int8 import head, normal
from tests.passes.llama import llama
from tests.zoo import MiniLM, SmolLM2, WhisperDecoder, WhisperEncoder

A, M, E, H = Role.ATTENTION, Role.MLP, Role.EMBEDDING, Role.HEAD


def found(model: ir.Model) -> dict[Role, list[tuple[int, ...]]]:
    """Shapes of the weights of each role."""
    for i, node in enumerate(model.graph.all_nodes()):
        node.name = str(i)
    stamp_originals(model)
    known = roles(model)
    shapes: dict[Role, list[tuple[int, ...]]] = {}
    for node in model.graph.all_nodes():
        if str(node.name) in known:
            weight = node.inputs[0 if node.op_type == "Gather" else 1]
            assert weight is not None
            assert weight.shape is not None
            shapes.setdefault(known[str(node.name)], []).append(tuple(weight.shape.numpy()))
    return shapes


def counts(model: ir.Model) -> dict[Role, int]:
    return {role: len(shapes) for role, shapes in found(model).items()}


def test_a_small_decoder() -> None:
    shapes = found(llama())
    assert {role: len(s) for role, s in shapes.items()} == {A: 8, M: 6}
    assert Counter(shapes[A]) == {(32, 32): 4, (32, 16): 4}
    assert Counter(shapes[M]) == {(32, 48): 4, (48, 32): 2}


@pytest.mark.models
@pytest.mark.parametrize(
    ("zoo", "expected"),
    [
        (SmolLM2, {A: 120, M: 90, E: 1, H: 1}),
        (MiniLM, {A: 24, M: 12, E: 1}),
        (WhisperEncoder, {A: 8, M: 10}),
        (WhisperDecoder, {A: 16, M: 8, E: 1, H: 1}),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_real_models(zoo: type, expected: dict[Role, int]) -> None:
    model = ir.load(zoo().path())
    run(model, InlineFunctions(), *NAMED, FoldConstants())
    assert counts(model) == expected


TEXT = head(21) + "g (int64[B,S] ids, float[B,S,8] x) => (float[B,S,12] y) "
PARTS = {"t": normal(9, 8), "w": normal(8, 8), "v": normal(8, 12), "b": normal(12)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{ e = Gather (t, ids) y = MatMul (e, v) }", {E: 1, H: 1}),
        ("{ h = MatMul (x, v) k = Add (h, b) y = Softmax (k) }", {H: 1}),
        ("{ h = MatMul (x, w) k = Relu (h) y = MatMul (k, v) }", {M: 2}),
        ("{ h = MatMul (x, w) k = Sigmoid (h) l = MatMul (x, w) m = Mul (k, l) y = MatMul (m, v) }", {M: 3}),
        ("{ h = MatMul (x, w) k = Add (h, x) y = MatMul (k, v) }", {H: 1}),
        ("{ s = Shape (ids) e = Gather (t, s) h = ReduceMean (e) k = Add (x, h) y = MatMul (k, v) }", {H: 1}),
        ("{ h = MatMul (x, v) m = ReduceMax (h) y = Sub (h, m) }", {}),
    ],
    ids=[
        "embedding and head",
        "logits behind a bias and Softmax",
        "mlp",
        "gated mlp",
        "over a residual",
        "positions",
        "two branches",
    ],
)
def test_roles_of_parts(body: str, expected: dict[Role, int]) -> None:
    used = {k: v for k, v in PARTS.items() if f"{k}," in body or f", {k})" in body}
    assert counts(model_of(TEXT + body, used)) == expected
