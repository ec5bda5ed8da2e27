"""What adapters give the inputs of a model that takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.lora.adapter import Adapter, read_adapter
from qcompile.compiler.lora.ports import values_for
from qcompile.errors import DataError
from tests.passes.adapters import low_rank, write

_F16 = ir.TensorType(ir.DataType.FLOAT16)


def _inputs(*layers: str) -> list[ir.Value]:
    """Of layers of 3 x 4."""
    shapes = ((".lora_A", [4, "r"]), (".lora_B", ["r", 3]))
    ports = [ir.val(layer + end, type=_F16, shape=ir.Shape(shape)) for layer in layers for end, shape in shapes]  # type: ignore[arg-type]
    return [ir.val("x", type=_F16, shape=ir.Shape([1])), *ports]


def _adapter(folder: Path, *modules: str, k: int = 4) -> Adapter:
    tensors = {name: array for module in modules for name, array in low_rank(module, 3, k).items()}
    return read_adapter(write(folder / "it", tensors))


def test_scale_and_type(tmp_path: Path) -> None:
    """B holds s; layers without a module are left out."""
    adapter = _adapter(tmp_path, "model.m.a")
    update = adapter.updates["model.m.a"]
    found = values_for(adapter, _inputs("m.a", "m.b"))
    assert list(found) == ["m.a.lora_A", "m.a.lora_B"]
    np.testing.assert_array_equal(found["m.a.lora_A"], update.down.T.astype(np.float16))
    np.testing.assert_array_equal(found["m.a.lora_B"], (2 * update.up).T.astype(np.float16))


def test_the_layer_with_most_in_common(tmp_path: Path) -> None:
    found = values_for(_adapter(tmp_path, "a.x.q"), _inputs("q", "x.q", "b.x.q"))
    assert list(found) == ["x.q.lora_A", "x.q.lora_B"]


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        (("m.c",), r"no adapter for 1 of 1 modules of 'it': m\.c"),
        (("b",), r"no adapter for 1 of 1 modules of 'it': b"),  # m.b or n.b?
        (("m.a", "x.m.a"), r"no adapter for 1 of 2 modules of 'it': x\.m\.a"),
    ],
)
def test_modules_without_a_layer_of_their_own(modules: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as error:
        values_for(_adapter(tmp_path, *modules), _inputs("m.a", "m.b", "n.b"))
    assert "--names" in error.value.hint


def test_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'m\.a\.lora_A' of adapter 'it' is \[5, 2\], the model wants \[4,"):
        values_for(_adapter(tmp_path, "m.a", k=5), _inputs("m.a"))
    tensors = {"m.a.lora_A.weight": np.ones((2, 4, 1, 1)), "m.a.lora_B.weight": np.ones((3, 2, 1, 1))}
    convolution = read_adapter(write(tmp_path / "it", tensors))
    with pytest.raises(DataError, match=r"'m\.a\.lora_A' of adapter 'it' is \[2, 4, 1, 1\]"):
        values_for(convolution, _inputs("m.a"))
