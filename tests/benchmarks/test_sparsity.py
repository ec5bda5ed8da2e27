"""The benchmark of fewer weights: its forms are recipes that exist; its masks, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import sparsity_tables
from benchmarks.sparsity_forms import OURS, THEIRS, as_published, forms
from benchmarks.sparsity_masks import overlap
from qcompile.compiler.context import CompileContext
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.targets import target_named
from tests.passes.llama import WIDTH, llama
from tests.sweep.harness import Samples

_LAYER = "model.layers.{}.self_attn.{}_proj.weight"


def test_every_form_has_a_stamp_of_its_own() -> None:
    stamps = {name: form.stamp() for name, form in forms().items()}
    assert len(set(stamps.values())) == len(stamps)
    assert {*OURS, *THEIRS} < forms().keys()


@pytest.mark.parametrize("method", ["sparsify-magnitude", "wanda", "sparsegpt"])
def test_zeros_in_layers_that_keep_their_names(method: str) -> None:
    model = llama(1)
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    x = np.random.default_rng(0).standard_normal((2, 8, WIDTH)).astype(np.float32)
    context = CompileContext(target_named("cpu"), Path("m"), calibration=Samples([{"x": x}]))
    run_pipeline(as_published(method).passes(), model, context)
    after = {str(n.outputs[0].name): n.inputs[1] for n in model.graph if n.op_type == "MatMul" and n.inputs[1]}
    thinned = {name: v.const_value.numpy() for name, v in after.items() if v is not None and v.const_value is not None}
    assert {"q0", "k0", "v0", "o0", "gate0", "up0", "down0"} <= thinned.keys()
    for name in ("q0", "down0"):
        kept = np.count_nonzero(thinned[name].reshape(-1, 4, thinned[name].shape[1]), axis=1)
        assert (kept == 2).all()
        if method != "sparsegpt":
            mine = thinned[name] != 0
            np.testing.assert_array_equal(thinned[name][mine], before[f"w_{name}"][mine])


def test_overlap_counts_the_weights_that_both_keep() -> None:
    ours = {_LAYER.format(i, part): np.array([[1.0, 2, 0, 0]]) for i in range(2) for part in "qkvo"}
    theirs = {name: np.array([[3.0, 0, 4, 0]]) if "layers.1" in name else 2 * w for name, w in ours.items()}
    theirs[_LAYER.format(1, "o")] = np.array([[0.0, 0, 1, 1]])
    assert overlap(ours | {"model.norm.weight": np.ones(4)}, theirs) == {"all": 11 / 16, "least": 0.0, "first": 1.0}


def test_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity_tables, "RESULTS", tmp_path)
    assert sparsity_tables.sparsity() == sparsity_tables.masks() == "Not measured yet."
    answers: dict[str, Any] = {"WikiText-2": {"perplexity": 22.0, "agreement": 0.5, "divergence": 0.25}}
    masks = {THEIRS[0]: {"all": 0.9, "least": 0.7, "first": 0.99}, THEIRS[1]: {"error": "it ended"}}
    rows = [
        {"form": "float", "kind": "float", "bytes": 2_000_000, "answers": {"WikiText-2": {"perplexity": 20.0}}},
        {"form": "Wanda 2:4", "kind": "2:4", "bytes": 2_000_000, "answers": answers, "masks": masks},
        {"form": "SparseGPT 2:4", "kind": "2:4", "error": "RuntimeError"},
    ]
    (tmp_path / "sparsity").mkdir()
    (tmp_path / "sparsity" / "smollm2-135m-permuted.json").write_text(json.dumps({"rows": rows}))
    lines = sparsity_tables.sparsity().splitlines()
    assert lines[2] == "| float | 2 | 20.00 |  |  |"
    assert lines[3] == "| Wanda 2:4 | 2 | 22.00 (+10.0%) | 50.0% | 0.2500 |"
    assert lines[4].startswith("| SparseGPT 2:4 | fails |")
    assert sparsity_tables.masks().splitlines()[2] == "| Wanda 2:4 | 90.0% / 99.0% | fails |"
