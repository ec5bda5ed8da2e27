"""Modules of an adapter get the names of the layers in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompile.compiler.lora.adapter import Adapter, read_adapter
from qcompile.compiler.lora.names import modules_of_layers, renamed
from qcompile.errors import DataError, UsageError
from tests.passes.adapters import low_rank, write


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    tensors = {"norm.weight": np.ones(4, np.float32)}
    for path in ("m.layers.0.attn.q", "m.layers.1.attn.q", "m.head_3.out"):
        tensors |= low_rank(path, 3, 4, seed=len(tensors))
    return read_adapter(write(tmp_path / "it", tensors))


def test_words_go_over_in_order(adapter: Adapter) -> None:
    """The first name that fits counts; the numbers stay, and so does what no name fits."""
    names = ["m.layers.1.attn.q=last", "m.{}.{}.attn.q=/{}_{}/q/MatMul", "m.head_{}.out=out{}", "norm=output_norm"]
    [found] = renamed([adapter], names)
    assert set(found.updates) == {"/layers_0/q/MatMul", "last", "out3"}
    assert found.updates["last"].module == "last"
    np.testing.assert_array_equal(found.updates["last"].down, adapter.updates["m.layers.1.attn.q"].down)
    assert list(found.trained) == ["output_norm.weight"]
    [some] = renamed([adapter], ["norm=output_norm"])
    assert some.updates.keys() == adapter.updates.keys()


def test_a_name_must_fit_one_of_the_adapters(adapter: Adapter, tmp_path: Path) -> None:
    other = read_adapter(write(tmp_path / "other", low_rank("n.fc", 3, 4)))
    names = ["n.fc=/fc/MatMul", "m.layers.{}.attn.q=q{}"]
    first, second = renamed([adapter, other], names)
    assert "q1" in first.updates
    assert list(second.updates) == ["/fc/MatMul"]
    with pytest.raises(DataError, match=r"nothing is called 'n\.fc'"):
        renamed([adapter], names)


def test_words_end_at_dots(adapter: Adapter) -> None:
    with pytest.raises(DataError, match=r"nothing is called 'm\.\{\}\.q'") as error:
        renamed([adapter], ["m.{}.q=q{}"])
    assert ".attn.q'" in error.value.hint


def test_two_modules_of_one_name(adapter: Adapter) -> None:
    with pytest.raises(DataError, match=r"'m\.head_3\.out' and 'm\.layers\.0\.attn\.q' would both be 'out'"):
        renamed([adapter], ["m.layers.0.attn.q=out", "m.head_3.out=out"])
    with pytest.raises(DataError, match=r"would both be 'm\.head_3\.out'"):
        renamed([adapter], ["m.layers.0.attn.q=m.head_3.out"])


@pytest.mark.parametrize("text", ["m.q", "=q", "m.q=", "m.{}.q=q", "m.q=blk.{}.q"])
def test_other_forms(text: str, adapter: Adapter) -> None:
    with pytest.raises(UsageError, match="is not of the form MODULE=LAYER"):
        renamed([adapter], [text])


def test_the_way_back() -> None:
    names = ["model.layers.{}.q_proj=blk.{}.attn_q"]
    found = modules_of_layers(["blk.0.attn_q", "blk.1.attn_q", "head"], names)
    assert found == {
        "blk.0.attn_q": "model.layers.0.q_proj",
        "blk.1.attn_q": "model.layers.1.q_proj",
        "head": "head",
    }
    with pytest.raises(DataError, match=r"nothing is called 'blk\.\{\}\.attn_q'"):
        modules_of_layers(["layers.0.attn_q"], names)
