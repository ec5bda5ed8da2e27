"""Samples of every kind arrive alike, and every fault names the input and the sample."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.compiler.inputs import ModelInput, model_inputs, table_rows
from qcompile.errors import DataError, QCompileError, UsageError
from qcompile.frontends.calibration_data import open_calibration, split_held_out
from qcompile.frontends.model_file import load_model
from qcompile.frontends.samples.check import check_sample
from tests.frontends.models import WIDTH, linear, npz_folder, samples, save, two_inputs

F32 = np.dtype(np.float32)
LINEAR = [ModelInput("x", F32, ("batch", WIDTH))]
TWO = [ModelInput("tokens", np.dtype(np.int64), ("batch", "length")), ModelInput("mask", F32, ("batch", "length"))]


def fault(given: Any, inputs: list[ModelInput] = LINEAR) -> QCompileError:
    with pytest.raises(QCompileError) as caught:
        open_calibration(given, inputs)
    return caught.value


def test_every_kind_gives_the_same_samples_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file

    folder = npz_folder(tmp_path / "npz", 5)
    npy, tensors = tmp_path / "npy", tmp_path / "safetensors"
    npy.mkdir()
    tensors.mkdir()
    for number, sample in enumerate(samples(5)):
        np.save(npy / f"{number}.npy", sample["x"])
        save_file(sample, tensors / f"{number}.safetensors")
    (tmp_path / "my_data.py").write_text(
        "from tests.frontends.models import samples\ndef five():\n    yield from samples(5)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    expected = open_calibration(samples(5), LINEAR)
    for given in (folder, npy, tensors, "my_data:five", f"{tmp_path}/my_data.py:five", lambda: iter(samples(5))):
        source = open_calibration(given, LINEAR)
        assert len(source) == 5
        assert source.digest() == expected.digest()
        for _ in range(2):
            for got, want in zip(source, samples(5), strict=True):
                np.testing.assert_array_equal(got["x"], want["x"])
    assert open_calibration(samples(5, seed=1), LINEAR).digest() != expected.digest()
    assert open_calibration(samples(4), LINEAR).digest() != expected.digest()


def test_one_file_is_one_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((64, WIDTH), np.float32))
    assert len(open_calibration(tmp_path / "a.npz", LINEAR)) == 1
    error = fault(tmp_path / "a.npz", [ModelInput("x", F32, (1, WIDTH))])
    assert "dimension 0 must be 1" in error.what
    assert "one by one" in error.hint


def test_samples_stream(tmp_path: Path) -> None:
    alive = 0
    most = 0

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def many() -> Iterator[dict[str, Any]]:
        nonlocal alive, most
        for _ in range(50):
            alive += 1
            most = max(most, alive)
            yield {"x": np.zeros((1, WIDTH), np.float32).view(Counted)}

    source = open_calibration(many, LINEAR)
    assert len(source) == 50
    assert sum(1 for _ in source) == 50
    assert most <= 3


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"X": np.zeros((1, WIDTH), np.float32)}, "no input 'X'"),
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, WIDTH))}, "float64, the model wants float32"),
        ({"x": np.zeros(WIDTH, np.float32)}, "1 dimensions"),
        ({"x": np.zeros((1, WIDTH + 1), np.float32)}, "dimension 1 must be 8"),
        ({"x": np.zeros((0, WIDTH), np.float32)}, "is empty"),
        ({"x": np.full((1, WIDTH), np.nan, np.float32)}, "NaN"),
        ({"x": np.full((1, WIDTH), -np.inf, np.float32)}, "infinity"),
    ],
)
def test_a_wrong_sample_is_named(sample: dict[str, Any], expected: str) -> None:
    error = fault([*samples(3), sample])
    assert isinstance(error, DataError)
    assert expected in error.what
    assert "'x'" in str(error)
    assert error.where == "sample 4"


def test_hints() -> None:
    assert "did you mean 'mask'" in fault([{"maks": np.zeros(1)}], TWO).what
    assert "astype('float32')" in fault([{"x": np.zeros((1, WIDTH))}]).hint
    assert "array[None]" in fault([{"x": np.zeros(WIDTH, np.float32)}]).hint


def test_the_file_is_named(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", 3)
    np.savez(folder / "001.npz", x=np.full((1, WIDTH), np.nan, np.float32))
    assert fault(folder).where.endswith("001.npz")


def test_one_symbol_has_one_size() -> None:
    sample = {"tokens": np.zeros((1, 4), np.int64), "mask": np.zeros((1, 5), np.float32)}
    assert "'length' is 4 in input 'tokens' but 5 in input 'mask'" in fault([sample], TWO).what


def test_zero_samples(tmp_path: Path) -> None:
    assert "no samples" in fault([]).what
    assert "no samples" in fault(lambda: iter([])).what
    empty = tmp_path / "empty"
    empty.mkdir()
    error = fault(empty)
    assert isinstance(error, UsageError)
    assert "no calibration data" in error.what


def test_a_damaged_file(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", 2)
    file = folder / "001.npz"
    file.write_bytes(file.read_bytes()[:50])
    error = fault(folder)
    assert isinstance(error, DataError)
    assert error.where.endswith("001.npz")
    np.savez(file, x=np.array([{"python": "object"}], dtype=object))
    assert "Python objects" in fault(folder).what


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    assert "'.csv' is not a known kind" in fault(tmp_path / "x.csv").what
    assert "no such calibration data" in fault(tmp_path / "nowhere").what
    assert "only once" in fault(iter(samples(2))).what
    assert "cannot be a int" in fault(5).what
    mixed = npz_folder(tmp_path / "mixed", 1)
    np.save(mixed / "a.npy", np.zeros(1))
    assert "mixes .npy and .npz" in fault(mixed).what
    assert "2 inputs: tokens, mask" in fault(str(mixed / "a.npy"), TWO).what


def test_faults_of_a_function(tmp_path: Path) -> None:
    code = "def none():\n    yield {'x': None}\n\ndef dies():\n    yield from ()\n    raise RuntimeError('no disk')\n"
    (tmp_path / "broken.py").write_text(code)
    file = tmp_path / "broken.py"
    error = fault(f"{file}:dies")
    assert "RuntimeError after 0 samples: no disk" in error.what
    assert "broken.py:6" in error.where
    assert "float32" in fault(f"{file}:none").what
    assert "has no function 'nothing'" in fault(f"{file}:nothing").what
    assert "no such file" in fault(f"{tmp_path}/gone.py:f").what
    assert "cannot be imported" in fault("no_such_module_here:f").what
    assert "must be a dict" in fault(lambda: iter([np.zeros(3)])).what


def test_synthetic_samples_follow_the_model(tmp_path: Path) -> None:
    model = load_model(save(two_inputs(), tmp_path / "m.onnx"))
    rows = table_rows(model)
    assert rows == {"tokens": 16}
    source = open_calibration("synthetic", model_inputs(model), rows=rows)
    assert source.synthetic
    first = next(iter(source))
    assert first["tokens"].shape == first["mask"].shape == (1, 32)
    assert first["tokens"].max() < 16
    again = open_calibration("synthetic", model_inputs(model), rows=rows)
    assert again.digest() == source.digest()
    assert open_calibration("synthetic", model_inputs(model), rows=rows, seed=1).digest() != source.digest()


def test_held_out_samples_are_kept_apart_when_there_are_enough() -> None:
    source = open_calibration(samples(40), LINEAR)
    rest, held_out, apart = split_held_out(source)
    assert apart
    assert (len(rest), len(held_out)) == (32, 8)
    assert sum(1 for _ in rest) == 32
    seen = {s["x"].tobytes() for s in rest}
    assert all(s["x"].tobytes() not in seen for s in held_out)
    few = open_calibration(samples(5), LINEAR)
    rest, held_out, apart = split_held_out(few)
    assert not apart
    assert (len(rest), len(held_out)) == (5, 5)


def test_inputs_with_a_default_are_optional(tmp_path: Path) -> None:
    model = linear()
    model.graph.input.append(model.graph.input[0].__class__.FromString(model.graph.input[0].SerializeToString()))
    model.graph.input[1].name = "b"
    model.graph.input[1].type.tensor_type.shape.Clear()
    model.graph.input[1].type.tensor_type.shape.dim.add(dim_value=WIDTH)
    inputs = model_inputs(load_model(save(model, tmp_path / "m.onnx")))
    assert [i.required for i in inputs] == [True, False]
    assert len(open_calibration(samples(2), inputs)) == 2


def test_an_empty_cache_beside_other_inputs_is_a_sample() -> None:
    inputs = [ModelInput("ids", np.dtype("int64"), (1, "S")), ModelInput("past", np.dtype("float32"), (1, 2, "P", 4))]
    ids, past = np.zeros((1, 3), np.int64), np.zeros((1, 2, 0, 4), np.float32)

    check_sample({"ids": ids, "past": past}, inputs, "sample 1")

    with pytest.raises(DataError, match="'ids' is empty"):
        check_sample({"ids": ids[:, :0], "past": past}, inputs, "sample 1")
