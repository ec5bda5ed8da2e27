"""Sites of a diagonal scale: which there are, and that folding keeps the function."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.passes.transform.folding.apply import apply
from qcompile.passes.transform.folding.search import find_sites
from tests.passes.harness import NAMED, Arrays, assert_close, outputs, run
from tests.passes.transform.graphs import GRAPHS, Graph


def prepared(graph: Graph) -> ir.Model:
    model = graph.model
    run(model, *NAMED)
    return model


@pytest.mark.parametrize("name", GRAPHS)
def test_sites(name: str) -> None:
    sites, _ = find_sites(prepared(GRAPHS[name]))
    assert [(s.family.value, s.scales) for s in sites] == GRAPHS[name].sites


@pytest.mark.parametrize("name", GRAPHS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.1, 2.0))
def test_folding_keeps_the_function(name: str, seed: int, spread: float) -> None:
    graph = GRAPHS[name]
    model = prepared(graph)
    expected = outputs(model, graph.feeds)
    sites, refused = find_sites(model)
    random = np.random.default_rng(seed)
    for site in [*sites, *(r.explicit for r in refused)]:
        apply(model, site, np.exp(spread * random.standard_normal(site.scales)), "test")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_close(expected, outputs(model, graph.feeds))


@pytest.mark.parametrize("name", GRAPHS)
def test_values_are_divided_as_the_site_says(name: str) -> None:
    graph = GRAPHS[name]
    model = prepared(graph)
    for site in find_sites(model)[0]:
        changed, scales = model.clone(), np.exp(np.random.default_rng(1).standard_normal(site.scales))
        apply(changed, site, scales, "test")
        before, after = (_observed(m, list(site.values), graph) for m in (model, changed))
        for value, groups in site.values.items():
            assert_close([before[value] / np.append(scales, 1.0)[groups].astype(np.float32)], [after[value]])


def _observed(model: ir.Model, names: list[str], graph: Graph) -> Arrays:
    copy = model.clone()
    wanted = [v for n in copy.graph for v in n.outputs if v.name in names and not v.is_graph_output()]
    shown = len(copy.graph.outputs)
    copy.graph.outputs.extend(wanted)
    return dict(zip([str(v.name) for v in wanted], outputs(copy, graph.feeds)[shown:], strict=True))
