"""The CUDA table against the real CUDA provider, placed on a stub of CUDA in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest

from qcompile.compiler.operators import catalogue
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.cuda import LANDINGS, Landing, Lands
from tests.targets import cuda_stub
from tests.targets.cuda_cases import CASES

pytestmark = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.targets.cuda_cases` prints when the stub stands in for CUDA."""
    return cuda_stub.run("tests.targets.cuda_cases", tmp_path_factory.mktemp("cuda_stub"))


def test_every_claim_has_a_case_and_every_case_a_claim() -> None:
    assert {(claim.op_type, claim.case) for claim in LANDINGS} == set(CASES)


@pytest.mark.parametrize("claim", LANDINGS, ids=lambda c: f"{c.op_type} {c.case}")
def test_operator_lands_where_the_table_says(claim: Landing, placed: dict[str, Any]) -> None:
    seen = placed[f"{claim.op_type}|{claim.case}"]
    if claim.lands is Lands.NOWHERE:
        assert seen.startswith("the session fails")
    else:
        assert seen == claim.lands


def test_quantized_convolutions_compute_in_float(placed: dict[str, Any]) -> None:
    """Why nothing is written in Q/DQ: nothing fuses, so every conversion is paid and the product is float."""
    assert target_named("cuda").unfused
    executed = placed["convolutions"]
    assert executed.count("Conv") == 2
    assert executed.count("QuantizeLinear") == 3
    assert not any(op_type.startswith("Q") and op_type != "QuantizeLinear" for op_type in executed)


def test_statistics_are_computed_and_counted_on_the_device(placed: dict[str, Any]) -> None:
    """No activation comes back: only what handles shapes and sizes runs on the CPU."""
    taken = placed["statistics"]
    assert set(taken.get("CPUExecutionProvider", ())) <= {"Shape", "Size", "Gather", "Cast", "Reshape", "Unsqueeze"}
    on_device = taken["CUDAExecutionProvider"]
    assert {"ReduceMin", "ReduceMax", "ReduceL1", "ReduceSum", "Floor", "Compress", "Concat"} <= set(on_device)
    assert on_device.count("ScatterElements") == 2


def test_samples_on_the_device_give_outputs_on_the_device(placed: dict[str, Any]) -> None:
    """What block walks carry from block to block is never copied."""
    assert placed["calibration"] == {
        "provider": "CUDAExecutionProvider",
        "outputs": [[["cuda", [2, 4]]], [["cuda", [3, 4]]]],
    }


def test_bodies_of_operators_lie_wholly_on_the_device(placed: dict[str, Any]) -> None:
    """Where the library of kernels is missing, an artifact still runs without a copy to the host."""
    assert placed["bodies"] == {name: [] for name in catalogue()}
