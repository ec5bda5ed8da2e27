"""An artifact is written whole or not at all, and the same model gives the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.compiler import artifact
from qcompile.compiler.artifact import check_output, model_bytes, write_model, write_text
from qcompile.errors import OutputError, PassError
from qcompile.runtime import model_header
from tests.frontends.models import WIDTH, linear, save_external

MANIFEST = {"target": "cpu", "recipe": {"name": "r"}, "seed": 0}


def model() -> ir.Model:
    return ir.from_proto(linear())


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_written_with_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    assert write_model(model(), path, MANIFEST) == path.stat().st_size == model_bytes(path)
    assert files(tmp_path) == ["out.onnx"]
    assert model_header.manifest(path) == MANIFEST
    onnx.checker.check_model(str(path), full_check=True)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    write_model(model(), tmp_path / "a.onnx", MANIFEST)
    write_model(model(), tmp_path / "b.onnx", dict(reversed(MANIFEST.items())))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        write_model(model(), path, MANIFEST)
    assert path.read_text() == "precious"
    write_model(model(), path, MANIFEST, overwrite=True)
    assert model_header.manifest(path) == MANIFEST


def test_large_weights_go_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_LARGEST_FILE", 100)
    big = model()
    big.graph.initializers["W"].const_value = ir.tensor(np.ones((WIDTH, WIDTH), np.float32), name="W")
    random = np.random.default_rng(0).standard_normal((512, WIDTH)).astype(np.float32)
    path = tmp_path / "out.onnx"
    wide = ir.Value(name="V", shape=ir.Shape(random.shape), type=ir.TensorType(ir.DataType.FLOAT))
    wide.const_value = ir.tensor(random, name="V")
    big.graph.register_initializer(wide)
    size = write_model(big, path, MANIFEST)
    assert files(tmp_path) == ["out.onnx", "out.onnx.data"]
    assert size == model_bytes(path) == path.stat().st_size + (tmp_path / "out.onnx.data").stat().st_size
    assert size > random.nbytes
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((1, WIDTH), np.float32)})[0].shape == (1, WIDTH)
    first = (path.read_bytes(), (tmp_path / "out.onnx.data").read_bytes())
    write_model(big, path, MANIFEST, overwrite=True)
    assert first == (path.read_bytes(), (tmp_path / "out.onnx.data").read_bytes())
    path.unlink()
    with pytest.raises(OutputError, match=r"out\.onnx\.data"):
        write_model(big, path, MANIFEST)


def test_external_weights_come_into_a_small_artifact(tmp_path: Path) -> None:
    source = save_external(tmp_path / "m.onnx", "weights.bin", tmp_path / "weights.bin")
    assert model_bytes(source) == source.stat().st_size + 4 * WIDTH * WIDTH
    out = tmp_path / "elsewhere"
    out.mkdir()
    write_model(ir.load(source), out / "out.onnx", MANIFEST)
    onnxruntime.InferenceSession(str(out / "out.onnx"), providers=["CPUExecutionProvider"])


def test_an_invalid_model_is_not_written(tmp_path: Path) -> None:
    broken = model()
    next(iter(broken.graph)).attributes["no_such_attribute"] = ir.AttrInt64("no_such_attribute", 1)
    with pytest.raises(PassError, match="not valid ONNX"):
        write_model(broken, tmp_path / "out.onnx", MANIFEST)
    assert files(tmp_path) == []


def test_an_output_of_unknown_rank_is_no_fault(tmp_path: Path) -> None:
    shapeless = model()
    shapeless.graph.outputs[0].shape = None
    write_model(shapeless, tmp_path / "out.onnx", MANIFEST)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_model(model(), tmp_path / "out.onnx", MANIFEST)
    assert "free some space" in caught.value.hint
    with pytest.raises(OutputError, match="No space left"):
        write_text("report", tmp_path / "report.html")
    assert files(tmp_path) == []


def test_outputs_that_cannot_be_written_are_found_first(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path, expected in (
        (file / "out.onnx", "folder of the output does not exist"),
        (tmp_path / "no" / "out.onnx", "folder of the output does not exist"),
        (tmp_path, "is a folder"),
        (file, "exists already"),
    ):
        with pytest.raises(OutputError, match=expected):
            check_output(path, overwrite=False)
    with pytest.raises(OutputError, match="disk is full"):
        check_output(tmp_path / "out.onnx", overwrite=False, source_bytes=1 << 60)
    check_output(tmp_path / "out.onnx", overwrite=False)
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which even root makes no file")
def test_a_folder_that_takes_no_files() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(Path("/proc/out.onnx"), overwrite=False)
