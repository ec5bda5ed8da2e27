"""Calibration tables: compiling from one is compiling from the samples, and a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile.compiler.calibration_table import CalibrationTable
from qcompile.errors import DataError, OutputError, QCompileError, UsageError
from tests.frontends.models import image_model, linear, save
from tests.frontends.test_cli import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(linear(width=64), tmp_path / "m.onnx")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(40):
        np.savez(folder / f"{number:02}.npz", x=random.standard_normal((300, 64)).astype(np.float32))
    return folder


@pytest.fixture
def table(model: Path, samples: Path) -> Path:
    return qcompile.calibrate(model, calibration=samples, overrides=["calibrate.method=auto"])


@pytest.mark.parametrize("method", ["min-max", "moving-average", "percentile", "entropy", "mse", "auto"])
def test_the_artifact_is_the_same_as_from_samples(method: str, model: Path, samples: Path, table: Path) -> None:
    made = {}
    for name, data in (("samples", samples), ("table", table)):
        out = model.with_name(f"{name}.onnx")
        artifact = qcompile.compile(
            model, calibration=data, output=out, overrides=[f"calibrate.method={method}"], prove=method == "mse"
        )
        made[name] = out.read_bytes(), artifact.report
    assert made["table"][0] == made["samples"][0], "manifest included"
    assert made["table"][1].samples == made["samples"][1].samples == 32
    assert made["table"][1].data == "calibration table m.int8-static.qcal (40 .npz files)"
    if method == "mse":
        assert made["table"][1].layers == made["samples"][1].layers, "proved on the same held-out samples"


def test_what_it_holds(table: Path) -> None:
    assert table.name == "m.int8-static.qcal"
    assert not list(table.parent.glob("*checkpoint*"))
    found = CalibrationTable.load(table)
    assert (found.model, found.recipe, found.samples, len(found.held_out)) == ("m.onnx", "int8-static", 32, 8)
    [made] = found.runs.values()
    assert set(made.statistics.vectors) == {
        "range", "histogram", "histogram of held-out samples", "moving average"
    }  # fmt: skip
    again = table.with_name("again.qcal")
    found.save(again)
    assert CalibrationTable.load(again).runs.keys() == found.runs.keys()


def test_inspect_shows_every_tensor(table: Path) -> None:
    text = run("inspect", table).stdout
    assert "for m.onnx, recipe int8-static" in text
    assert "32 samples (40 .npz files), 8 samples for the proofs" in text
    found = json.loads(run("inspect", table, "--json").stdout)
    [made] = found["runs"]
    names = [t["name"] for t in made["tensors"]]
    assert names == sorted(names)
    assert all(name in text for name in names)
    for tensor in made["tensors"]:
        assert tensor["low"] <= tensor["clip"][0] <= tensor["clip"][1] <= tensor["high"]
        assert tensor["method"] in text
    assert (found["samples"], made["samples"], found["held_out"]) == (32, 32, 8)


def test_the_command(model: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.qcal"
    result = run("calibrate", model, "--calib", samples, "-o", out, "--set", "calibrate.method=mse")
    assert result.exit_code == 0, result.output
    assert "mse" in result.stdout
    assert out.exists()
    assert run("calibrate", model, "--calib", samples, "-o", out).exit_code == 1
    assert "exists already" in run("calibrate", model, "--calib", samples, "-o", out).output
    assert json.loads(run("calibrate", model, "--calib", samples, "-o", out, "--overwrite", "--json").stdout)["model"]
    assert run("calibrate", model, "-o", tmp_path / "other.qcal").exit_code == 2
    assert run("verify", model, "--target", "cpu", "--against", model, "--calib", out).exit_code == 0


def test_a_table_of_less_is_refused(model: Path, samples: Path) -> None:
    plain = qcompile.calibrate(model, calibration=samples, overrides=["calibrate.method=min-max"])
    with pytest.raises(DataError, match="the calibration table has no histogram of") as caught:
        qcompile.compile(model, calibration=plain, overrides=["calibrate.method=mse"])
    assert "qcompile calibrate" in caught.value.hint


def test_a_table_of_another_model_is_refused(table: Path, tmp_path: Path) -> None:
    weights = linear(width=64)
    weights.graph.initializer[0].raw_data = (
        2 * np.frombuffer(weights.graph.initializer[0].raw_data, np.float32)
    ).tobytes()
    for number, other in enumerate((weights, linear(width=32), image_model())):
        path = save(other, tmp_path / f"other{number}.onnx")
        with pytest.raises(DataError, match="belongs to another model") as caught:
            qcompile.compile(path, calibration=table)
        assert "it was made for m.onnx with the recipe int8-static" in caught.value.hint


@pytest.mark.parametrize("damage", ["empty", "cut", "other bytes", "no table", "a version to come"])
def test_a_damaged_table_is_refused(damage: str, table: Path, model: Path) -> None:
    data = table.read_bytes()
    if damage == "no table":
        with table.open("wb") as file:
            np.savez(file, x=np.zeros(3))
    elif damage == "a version to come":
        with table.open("wb") as file:
            np.savez(file, about=np.array(json.dumps({"format": 99})))
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 64]) + data[middle + 64 :]
        table.write_bytes({"empty": b"", "cut": data[:-100], "other bytes": flipped}[damage])
    with pytest.raises(DataError, match="cannot be read"):
        qcompile.compile(model, calibration=table)
    assert run("inspect", table).exit_code == 1


def test_what_cannot_be_a_table(model: Path, samples: Path, table: Path, tmp_path: Path) -> None:
    faults: list[tuple[type[QCompileError], str, dict[str, object]]] = [
        (UsageError, "a .qcal file", {"output": tmp_path / "t.onnx"}),
        (OutputError, "exists already", {}),
        (UsageError, "made from samples", {"calibration": table, "output": tmp_path / "t.qcal"}),
        (UsageError, "does not calibrate", {"recipe": "int8-dynamic"}),
    ]
    for kind, words, options in faults:
        with pytest.raises(kind, match=words):
            qcompile.calibrate(model, **({"calibration": samples} | options))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such calibration table"):
        qcompile.compile(model, calibration=tmp_path / "none.qcal")


def test_a_step_that_reads_samples_says_so(table: Path) -> None:
    from qcompile.compiler.calibration_table import TableSamples

    source = TableSamples(CalibrationTable.load(table), table)
    with pytest.raises(DataError, match="a calibration table holds statistics only"):
        next(iter(source))
