"""Adapters that PEFT writes, against PEFT's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from qcompile.frontends import lora
from qcompile.passes.prepare.merge_lora import MergeLora
from qcompile.runtime.binding import BoundExecution
from qcompile.runtime.session import Session
from qcompile.runtime.streams import Stream
from tests.passes.adapters import named_llama, sample
from tests.passes.harness import NAMED, assert_close, outputs, run
from tests.passes.lora import peft_adapter

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


def test_adapters_of_one_base_switch(tmp_path: Path) -> None:
    """Of other ranks and other layers, run by run, in sessions and with I/O binding."""
    model, feeds = named_llama(), sample()
    base = outputs(model, feeds)[0]
    fewer: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 8}}
    expected = {
        "first": peft_adapter(tmp_path / "first", model, feeds["x"]),
        "second": peft_adapter(tmp_path / "second", model, feeds["x"], seed=1, **fewer),
        None: base,
    }
    ir.save(model, tmp_path / "llama.onnx")
    made = lora.export(tmp_path / "llama.onnx", [tmp_path / "first", tmp_path / "second"], prove=False)
    session = Session(made.model, ["cpu"], adapters=dict(zip(("first", "second"), made.adapters, strict=True)))
    bound = BoundExecution(session._execution._session, ("cpu", 0), Stream())  # type: ignore[attr-defined]
    assert "adapters: first, second" in session.describe()
    for name in ("first", None, "second", "second", "first"):
        assert_close([expected[name]], [session(feeds, adapter=name)["y"]])
        assert_close([expected[name]], [bound.run(feeds, session._adapters.values(name))["y"]])
    tensors = {"x": torch.from_numpy(feeds["x"])}
    assert_close([expected["first"]], [session(tensors, adapter="first")["y"].numpy()])
