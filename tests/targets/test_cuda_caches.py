"""Quantized key-value caches on CUDA: placed there whole, by a stub of CUDA, in every format of the table.

The attention operator has half precision kernels only, so the model that has it is one in float16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from tests.passes.decoder import VOCABULARY, decoder, feed
from tests.targets import cuda_stub

FORMS = [(False, "int8"), (False, "int4"), (True, "int8"), (True, "int4"), (True, "fp8-e4m3")]
OF_SHAPES = {"Shape", "Gather", "Add", "Mul", "Unsqueeze", "Range", "LessOrEqual", "Where"}

pytestmark = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]


def compiled(folder: Path, operator: bool, form: str, *, prove: bool = False) -> qcompile.Artifact:
    model = folder / f"{operator}.onnx"
    onnx.save(ir.to_proto(decoder(operator=operator, half=operator)), model)
    samples = [feed(np.arange(i, i + 12) % VOCABULARY, {}, operator, half=operator) for i in range(4)]
    output = folder / f"{operator}-{form}.onnx"
    options = [f"quantize-kv-cache.format={form}", "precision.dtype=float32"]
    return qcompile.compile(
        model, "kv-int8", calibration=samples, target="cuda", output=output, overrides=options, prove=prove
    )


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("caches")
    paths = [str(compiled(folder, operator, form).path) for operator, form in FORMS]
    found: dict[str, dict[str, Any]] = cuda_stub.run("tests.targets.cuda_artifacts", folder, *paths)
    return found


@pytest.mark.parametrize(("operator", "form"), FORMS)
def test_nothing_but_shapes_leaves_the_device(operator: bool, form: str, placed: dict[str, dict[str, Any]]) -> None:
    placement = placed[f"{operator}-{form}.onnx"]
    assert set(placement["free"]["elsewhere"]) <= OF_SHAPES, Path(form)
    assert ("GroupQueryAttention" in str(placement["free"]["nodes"])) is operator


def test_a_cache_that_numpy_cannot_hold_is_not_called_wrong(tmp_path: Path) -> None:
    proofs = {proof.name: proof for proof in compiled(tmp_path, True, "fp8-e4m3", prove=True).report.proofs}
    assert proofs["numerics"].passed is None
    assert "FP8 inputs" in proofs["numerics"].detail
    assert not [proof for proof in proofs.values() if proof.passed is False]
