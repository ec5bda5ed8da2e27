"""Adapters that PEFT writes, against PEFT's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcompile.passes.prepare.merge_lora import MergeLora
from tests.passes.harness import NAMED, assert_close, outputs, run
from tests.passes.lora import named_llama, peft_adapter, sample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"down_proj": 8}, "alpha_pattern": {"q_proj": 3}},
        {"use_dora": True},
    ],
)
def test_merged_equals_base_and_adapter(options: dict[str, Any], tmp_path: Path) -> None:
    model, feeds = named_llama(), sample()
    expected = peft_adapter(tmp_path, model, feeds["x"], **options)
    run(model, *NAMED, MergeLora(adapter=str(tmp_path)))
    assert_close([expected], outputs(model, feeds))
