"""The count after removing channels is that of the model without them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import Sample
from qcompile.compiler.tensor_shapes import shapes_of
from qcompile.passes.transform.channels.remove import remove
from qcompile.passes.transform.channels.search import channel_groups
from qcompile.passes.transform.pruning.macs import Macs, operands
from qcompile.runtime.providers import CPU
from tests.passes.harness import NAMED, model_of, run
from tests.passes.llama import WIDTH, llama
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, images


def counted(model: ir.Model, sample: Mapping[str, np.ndarray]) -> tuple[Macs, list]:  # type: ignore[type-arg]
    groups = channel_groups(model)
    return Macs.of(model, groups, shapes_of(operands(model), model, sample, (CPU,))), groups


@pytest.mark.parametrize("case", ["decoder", "images"])
def test_count_of_what_is_left(case: str) -> None:
    sample: Sample = {"x": np.zeros((1, 7, WIDTH), np.float32)} if case == "decoder" else images(1)[0]
    model = llama(2) if case == "decoder" else model_of(IMAGES, dict(IMAGE_WEIGHTS))
    run(model, *NAMED)
    macs, groups = counted(model, sample)
    assert groups
    gone = {i: np.arange(group.size // 2) for i, group in enumerate(groups)}
    remove(model, {groups[i]: channels for i, channels in gone.items()}, "test")
    assert macs.total(gone) == pytest.approx(counted(model, sample)[0].total({}))
    assert macs.total(gone) < macs.total({})


def test_a_decoder_by_hand() -> None:
    model = llama(1)
    run(model, *NAMED)
    macs, groups = counted(model, {"x": np.zeros((1, 7, WIDTH), np.float32)})
    weights = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    assert macs.total({}) == 7 * weights + 2 * 4 * 7 * 7 * 8
    saved = {group.kind: macs.saved(i) for i, group in enumerate(groups)}
    assert saved["neurons"] == pytest.approx(7 * 3 * 32)
    assert saved["heads"] == pytest.approx(7 * (2 * 32 * 16 + 2 * 32 * 8) + 2 * 2 * 7 * 7 * 8)
