"""Groups of pretrained models: which there are, and that their dead channels may go."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.passes.transform.channels.branches import residual_branches
from qcompile.passes.transform.channels.group import Kind
from qcompile.passes.transform.channels.search import channel_groups
from tests.passes.harness import run
from tests.passes.transform.channels.dead import without_dead_channels
from tests.sweep.harness import PREPARE
from tests.zoo import MODELS

pytestmark = pytest.mark.models


def prepared(name: str) -> ir.Model:
    model = ir.load(MODELS[name]().path())
    run(model, *PREPARE)
    return model


def test_heads_and_neurons_of_an_encoder() -> None:
    model = prepared("all-minilm-l6-v2")
    groups = channel_groups(model)
    assert Counter((g.kind, g.size) for g in groups) == {(Kind.HEADS, 12): 6, (Kind.NEURONS, 1536): 6}
    assert len(residual_branches(model)) == 12
    sample = {"input_ids": np.array([[101, 7592, 102]]), "attention_mask": np.ones((1, 3), np.int64)}
    without_dead_channels(model, sample, 1e-5)


def test_filters_of_a_convolutional_network() -> None:
    model = prepared("efficientnet-lite0")
    groups = channel_groups(model)
    assert len(groups) == 24
    assert {g.kind for g in groups} == {Kind.FILTERS}
    assert len(residual_branches(model)) == 9
    without_dead_channels(model, MODELS["efficientnet-lite0"]().timing_sample(), 1e-5)


def test_what_a_recurrent_layer_reads_stays() -> None:
    model = prepared("silero-vad")
    [recurrent] = [n for n in model.graph if n.op_type == "LSTM"]
    assert [g.size for g in channel_groups(model)] == [129, 128, 64, 64]
    touched = {part.node for group in channel_groups(model) for part in group.parts}
    assert str(recurrent.name) not in touched
