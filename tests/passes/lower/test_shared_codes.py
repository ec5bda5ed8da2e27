"""A tensor becomes codes once, however many layers read it; a norm in front makes them itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.legality import find_faults
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.harness import outputs
from tests.passes.llama import WIDTH, llama
from tests.sweep.harness import compile_in_memory, sqnr

SAMPLES = [{"x": np.random.default_rng(i).standard_normal((1, 6, WIDTH)).astype(np.float32)} for i in range(4)]
CUDA = target_named("cuda")


def lowered(recipe: str, *without: str) -> ir.Model:
    """A decoder of one layer in float32 with codes, compiled for CUDA without some of the recipe's passes."""
    left_out = {"precision", *without}
    steps = [p for p in find_recipe(recipe).passes() if p.name not in left_out]
    done = compile_in_memory(ir.to_proto(llama(layers=1)), SAMPLES, steps, CUDA)
    return ir.from_proto(onnx.load_from_string(done.data))


@pytest.mark.parametrize(("recipe", "quantizer"), [("int8-dynamic", "QuantizeRows"), ("int8-static", "QuantizeLinear")])
def test_queries_keys_and_values_read_the_same_codes(recipe: str, quantizer: str) -> None:
    model = lowered(recipe, "merge-linear", "fuse-norm-quant")
    read = Counter(str(n.inputs[0].name) for n in model.graph if n.op_type == quantizer and n.inputs[0])
    assert read == dict.fromkeys(["na0", "flat0", "nf0", "gated0"], 1)
    [codes] = [
        n.outputs[0] for n in model.graph if n.op_type == quantizer and n.inputs[0] and n.inputs[0].name == "na0"
    ]
    assert [use.node.op_type for use in codes.uses()] == ["LinearW8A8"] * 3


def test_norms_make_the_codes_of_merged_layers() -> None:
    apart, fused = lowered("int8-dynamic", "fuse-norm-quant"), lowered("int8-dynamic")
    kinds = Counter(n.op_type for n in fused.graph)
    assert (kinds["RMSNormQuant"], kinds["AddRMSNormQuant"], kinds["QuantizeRows"]) == (1, 1, 2)
    assert not {"Pow", "ReduceMean", "Sqrt", "Div"} & set(kinds)
    assert find_faults(fused, CUDA) == []
    [exact], [before], [after] = (outputs(m, SAMPLES[0]) for m in (llama(layers=1), apart, fused))
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert sqnr(exact, after) > 25
