"""The models that the onnx package ships, through all of int8-static."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from qcompile.errors import QCompileError
from tests.sweep.harness import RECIPE, compile_in_memory, session, sqnr, unaccounted

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
LIGHT = sorted((DATA / "light").glob("*.onnx"))
STORED = sorted(
    p.parent
    for folder in ("pytorch-converted", "pytorch-operator", "simple")
    for p in DATA.glob(f"{folder}/*/model.onnx")
)

Feed = dict[str, npt.NDArray[Any]]

NOT_OURS = {
    "test_affine_grid_2d_expanded": "feeds a vector to Range, which the runtime refuses once it is a constant",
    "test_affine_grid_2d_align_corners_expanded": "the same",
    "test_mvn": "its function body does not pass the ONNX checker before we touch it",
    "test_scan_sum": "Scan of opset 8 has a batch axis, which the ONNX version converter drops",
}


def check(model: onnx.ModelProto, feed: Feed, least: float) -> int:
    """Compile, load, run, compare. Returns how many units run in int8."""
    run = session(model.SerializeToString(), optimized=False)
    expected = run.run(None, feed)
    compiled = compile_in_memory(model, [feed], RECIPE)
    assert unaccounted(compiled) == []
    assert not [n for n in compiled.context.notices if "no longer runs" in n]
    optimized = session(compiled.data, optimized=True)
    wanted = {i.name for i in optimized.get_inputs()}
    for name, a, b in zip(
        [o.name for o in run.get_outputs()],
        expected,
        optimized.run(None, {n: x for n, x in feed.items() if n in wanted}),
        strict=True,
    ):
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or not a.size:
            continue
        assert np.array_equal(np.isfinite(a), np.isfinite(b)), name
        finite = np.isfinite(a)
        assert not finite.any() or sqnr(a[finite], b[finite]) > least, name
    return len(compiled.context.plan.units)


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_light_models(path: Path) -> None:
    """Known architectures (AlexNet to ShuffleNet) of IR version 3 and opset 8 or 9, with constant weights."""
    model = onnx.load(path)
    weights = {w.name for w in model.graph.initializer}
    random = np.random.default_rng(0)
    feed = {
        i.name: random.standard_normal([d.dim_value or 1 for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in model.graph.input
        if i.name not in weights
    }
    check(model, feed, least=20)


def _tensor(path: Path) -> npt.NDArray[Any]:
    return numpy_helper.to_array(onnx.load_tensor(str(path)))


@pytest.mark.parametrize("folder", STORED, ids=lambda p: p.name)
def test_models_converted_from_pytorch(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
    feed = {i.name: _tensor(f) for i, f in zip(model.graph.input, files, strict=False)}
    if _runs(model, feed):
        check(model, feed, least=20)
    else:
        check_against_stored(folder, model, feed)


def check_against_stored(folder: Path, model: onnx.ModelProto, feed: Feed) -> None:
    """ONNX Runtime does not run opsets before 7; raised to a later one, the model must give the stored outputs.
    What it does not run at all (strings, training) goes through untouched."""
    compiled = compile_in_memory(model, [feed], RECIPE)
    if not _runs(onnx.load_from_string(compiled.data), feed):
        assert not compiled.context.plan.units
        return
    run = session(compiled.data, optimized=True)
    files = sorted((folder / "test_data_set_0").glob("output_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
    known = {i.name for i in run.get_inputs()}
    for file, got in zip(files, run.run(None, {n: x for n, x in feed.items() if n in known}), strict=True):
        wanted = _tensor(file)
        assert np.array_equal(np.isfinite(wanted), np.isfinite(got))
        finite = np.isfinite(wanted)
        with np.errstate(over="ignore"):  # some of the stored numbers are near the largest double
            assert sqnr(wanted[finite], got[finite]) > 20


def _node_cases() -> Iterator[tuple[str, onnx.ModelProto, Feed]]:
    """One case of each operator form that the ONNX standard is tested with, float inputs among them."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            model, arrays = case.model, case.data_sets[0][0]
            if not all(isinstance(a, np.ndarray) for a in arrays):
                continue
            if any(a.dtype == np.float32 for a in arrays):
                yield case.name, model, dict(zip((i.name for i in model.graph.input), arrays, strict=False))


@pytest.mark.models
def test_every_operator_of_the_standard() -> None:
    """All at once: making the cases takes longer than compiling them."""
    faults: list[str] = []
    tried = 0
    for name, model, feed in _node_cases():
        if name in NOT_OURS or not _runs(model, feed):
            continue
        tried += 1
        try:
            check(model, feed, least=15)
        except (QCompileError, AssertionError) as fault:
            faults.append(f"{name}: {fault}")
    assert tried > 800
    assert faults == []


def _runs(model: onnx.ModelProto, feed: Feed) -> bool:
    try:
        session(model.SerializeToString(), optimized=False).run(None, feed)
    except Exception:
        return False
    return True
