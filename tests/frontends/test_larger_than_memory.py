"""A model is compiled in the memory of a few of its matrices, and proved where there is no room for it."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import onnx
import pytest

import qcompile
from qcompile.compiler import artifact as writing
from qcompile.compiler.verification import room
from qcompile.errors import OutputError
from qcompile.frontends import model_file
from qcompile.runtime.external_tensors import external_files
from tests.large_decoder import Size, write_decoder

SIZE = Size(width=256, hidden=1024, layers=15, vocabulary=1000)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"), SIZE)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "_SMALL", 0)
    monkeypatch.setattr(writing, "_LARGEST_FILE", 1 << 20)


@pytest.mark.usefixtures("everything_is_large")
def test_no_more_than_a_few_matrices_are_held(decoder: Path, tmp_path: Path) -> None:
    small = write_decoder(_folder(tmp_path / "warm"), Size(64, 64, 1, 16))
    qcompile.compile(small, "int4-rtn", output=tmp_path / "warm.onnx", prove=False)
    tracemalloc.start()
    made = qcompile.compile(decoder, "int4-rtn", output=tmp_path / "out.onnx", prove=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert SIZE.bytes > 55e6
    assert made.report.bytes_after > SIZE.bytes / 8
    assert peak < 20e6, "the codes alone of all layers are 15 MB, and they are made twice"


@pytest.mark.usefixtures("everything_is_large")
def test_same_bytes_whatever_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = write_decoder(_folder(tmp_path / "m"), Size(256, 1024, 3, 1000))
    first, second = (_folder(tmp_path / name) / "out.onnx" for name in ("first", "second"))
    qcompile.compile(decoder, "int4-rtn", output=first, prove=False)
    monkeypatch.setattr("qcompile.passes.quantize.round_to_nearest.cores", lambda: 1)
    monkeypatch.setattr(model_file, "_SMALL", 1 << 40)
    qcompile.compile(decoder, "int4-rtn", output=second, prove=False)
    for path in (first, second):
        assert [f.name for f in external_files(onnx.load(path, load_external_data=False), path)] == ["out.onnx.data"]
    assert first.read_bytes() == second.read_bytes()
    assert first.with_name("out.onnx.data").read_bytes() == second.with_name("out.onnx.data").read_bytes()


def test_without_room_the_proofs_are_made_and_say_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_decoder(_folder(tmp_path / "m"), Size(128, 256, 2, 100))
    monkeypatch.setattr(room, "free_bytes", lambda: 0)
    made = qcompile.compile(model, "int4-rtn", calibration="synthetic", output=tmp_path / "out.onnx")
    proofs = {proof.name: proof for proof in made.report.proofs}
    assert proofs["dispatch"].passed
    assert proofs["numerics"].passed
    assert "without packed weights" in proofs["numerics"].detail
    assert made.report.layers
    assert "layers measured on 2 samples" in proofs["numerics"].detail
    assert made.report.float_gains is None
    assert proofs["speed"].passed is None
    assert "do not fit into memory" in proofs["speed"].detail


def test_weights_of_many_files_and_one_that_two_tensors_share(tmp_path: Path) -> None:
    """The second layer's matrices are read from the bytes of the first's."""
    model = write_decoder(_folder(tmp_path / "m"), Size(128, 256, 2, 100))
    proto = onnx.load(model, load_external_data=False)
    places = {t.name: t.external_data for t in proto.graph.initializer}
    for name in ("w_q", "w_gate"):
        for entry, shared in zip(places[f"{name}1"], places[f"{name}0"], strict=True):
            entry.value = shared.value
    onnx.save(proto, model)
    made = qcompile.compile(model, "int4-rtn", calibration="synthetic", output=tmp_path / "out.onnx")
    failed = {proof.name: proof.detail for proof in made.report.failed if proof.name != "speed"}
    assert failed == {}


@pytest.mark.usefixtures("everything_is_large")
def test_the_output_never_replaces_the_weights_of_the_model(decoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder.parent, tmp_path / "m")
    proto = onnx.load(folder / "decoder.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace("embedding.bin", "out.onnx.data")
    (folder / "embedding.bin").rename(folder / "out.onnx.data")
    onnx.save(proto, folder / "decoder.onnx")
    before = (folder / "out.onnx.data").read_bytes()
    with pytest.raises(OutputError, match=r"out\.onnx\.data.*weights of the model"):
        qcompile.compile(folder / "decoder.onnx", "int4-rtn", output=folder / "out.onnx", overwrite=True, prove=False)
    assert (folder / "out.onnx.data").read_bytes() == before
    assert not (folder / "out.onnx").exists()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
