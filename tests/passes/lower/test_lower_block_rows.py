"""Embeddings in blocks, as GatherBlockQuantized, alone and tied to a head."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets.table import Lowering
from qcompile.passes.lower.lower_block_rows import LowerBlockRows
from qcompile.passes.lower.lower_blocks import LowerBlocks
from tests.passes.int8 import head, normal
from tests.passes.lower.weight_only import check_golden, restored, weight_only

LOOKUP = head() + "g (int64[2,3] ids) => (float[2,3,{d}] y) {{ y = Gather (table, ids) }}"
TIED = head() + "g (int64[3] ids) => (float[3,20] y) {{ e = Gather (table, ids) y = Gemm <transB = 1> (e, table) }}"
IDS = {"ids": np.array([[0, 19, 3], [4, 4, 7]], np.int64)}
BOTH = {"Gather": Lowering.BLOCK_ROWS, "Gemm": Lowering.BLOCKS}


@pytest.mark.parametrize("columns", [64, 52])
@pytest.mark.parametrize("name", ["int2", "int4", "uint4", "int8", "uint8"])
def test_rows_are_what_the_codes_stand_for(name: str, columns: int) -> None:
    spec = QuantSpec(FORMATS[name], symmetric=name.startswith("i"))
    table = normal(20, columns) + 0.2
    result = weight_only(
        LOOKUP.format(d=columns), {"table": table}, IDS, spec, 16, LowerBlockRows(), lowering=Lowering.BLOCK_ROWS
    )
    [lookup] = result.model.graph
    assert (lookup.op_type, lookup.name) == ("GatherBlockQuantized", f"Gather_0_{name}")
    np.testing.assert_allclose(result.optimized["y"], restored(result, "table")[IDS["ids"]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["int4", "uint4", "int8"])
def test_a_head_tied_to_its_embedding_shares_the_table(name: str) -> None:
    spec = QuantSpec(FORMATS[name], symmetric=name.startswith("i"), scales=Scales.FLOAT16)
    sample, passes = {"ids": IDS["ids"][0]}, (LowerBlocks(), LowerBlockRows())
    result = weight_only(TIED.format(), {"table": normal(20, 64) + 0.2}, sample, spec, 32, *passes, lowering=BOTH)
    held = result.initializers()
    assert sum(v.shape is not None and v.shape.rank() == 3 for v in held.values()) == 1, "codes once"
    assert [name for name in held if "scale" in name] == ["table_block_scale"], "scales once"
    table = restored(result, "table")
    np.testing.assert_allclose(result.optimized["y"], table[sample["ids"]] @ table.T, rtol=0, atol=1e-3)
    assert result.kernels() == ["GatherBlockQuantized", "MatMulNBits"], "the rest is folded when the model loads"


def test_a_tied_table_whose_rows_end_in_a_short_block_is_stored_twice() -> None:
    """MatMulNBits fills the last block up, where a look-up would return what fills it."""
    spec = QuantSpec(FORMATS["int4"], symmetric=True)
    sample, passes = {"ids": IDS["ids"][0]}, (LowerBlocks(), LowerBlockRows())
    result = weight_only(TIED.format(), {"table": normal(20, 40)}, sample, spec, 32, *passes, lowering=BOTH)
    table = restored(result, "table")
    np.testing.assert_allclose(result.optimized["y"], table[sample["ids"]] @ table.T, rtol=0, atol=1e-3)


def test_golden() -> None:
    spec = QuantSpec(FORMATS["int4"], symmetric=True, scales=Scales.FLOAT16)
    table = np.arange(20 * 32, dtype=np.float32).reshape(20, 32) % 9 - 4
    check_golden(LOOKUP.format(d=32), {"table": table}, spec, 16, LowerBlockRows(), Lowering.BLOCK_ROWS)
