"""Context models: what sessions are asked for, what the file says, and which shapes are taken."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import qcompile
from qcompile.compiler.artifact import write_model
from qcompile.errors import OutputError, TargetError, UsageError
from qcompile.frontends import export
from qcompile.frontends.cli.main import app
from qcompile.runtime import providers
from qcompile.runtime.context_model import ShapeRange, context_options, profile_options
from qcompile.runtime.gpu import why_no_gpu
from qcompile.runtime.model_header import manifest
from qcompile.runtime.providers import TENSORRT, candidates
from qcompile.runtime.tensorrt_rtx import NAME as RTX
from tests.frontends.models import WIDTH, linear

no_gpu = pytest.mark.skipif(not why_no_gpu(), reason="this machine has a GPU")


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    write_model(ir.from_proto(linear()), tmp_path / "m.onnx", {"target": "tensorrt", "recipe": {"name": "int8-static"}})
    return tmp_path / "m.onnx"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The provider options of sessions; each writes a context model as ONNX Runtime would."""
    found: list[dict[str, str]] = []

    def opened(model: Path, _options: Any, provider: str, options: dict[str, str]) -> None:
        found.append(options)
        if provider != TENSORRT:
            raise TargetError(f"{provider} does not load")
        path = Path(options["trt_ep_context_file_path"])
        node = onnx.helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0)
        proto = onnx.load(model)
        graph = onnx.helper.make_graph([node], "context", proto.graph.input, proto.graph.output)
        onnx.save(onnx.helper.make_model(graph), path)
        path.with_name("m_sm90.engine").write_bytes(b"engine")

    monkeypatch.setattr(export, "open_session", opened)
    return found


def test_what_is_written(compiled: Path, asked: list[dict[str, str]]) -> None:
    path = qcompile.export(compiled, shapes={"x": f"1x{WIDTH}:8x{WIDTH}:32x{WIDTH}"})
    assert path == compiled.with_name("m.engine.onnx")
    [options] = asked
    assert options["trt_profile_min_shapes"] == f"x:1x{WIDTH}"
    assert options["trt_profile_opt_shapes"] == f"x:8x{WIDTH}"
    assert options["trt_profile_max_shapes"] == f"x:32x{WIDTH}"
    assert options["trt_ep_context_embed_mode"] == "1"
    said = manifest(path)
    assert said is not None
    assert said["recipe"] == {"name": "int8-static"}
    assert said["engines"] == TENSORRT
    assert path.with_name("m_sm90.engine").read_bytes() == b"engine"
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.engine.onnx", "m.onnx", "m_sm90.engine"]
    with pytest.raises(OutputError, match="exists"):
        qcompile.export(compiled, shapes={"x": f"1x{WIDTH}"})


def test_a_context_model_runs_on_its_own_provider_alone() -> None:
    for provider in (RTX, TENSORRT):
        assert [c.provider for c in candidates(None, {"target": "tensorrt", "engines": provider})] == [provider]


@no_gpu
def test_a_context_model_without_its_gpu(compiled: Path, asked: list[dict[str, str]]) -> None:
    path = qcompile.export(compiled, shapes={"x": f"1x{WIDTH}"})
    with warnings.catch_warnings(), pytest.raises(TargetError, match="no provider can run the model: Tensorrt"):
        qcompile.load(path)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({}, r"'x' float32 .* has free dimensions"),
        ({"z": "1x8"}, "no input 'z'"),
        ({"x": "1x9"}, "x=1x9 does not fit the model"),
        ({"x": "8"}, "does not fit"),
        ({"x": "1x8:2x8"}, "is no shape"),
        ({"x": "2x8:1x8:4x8"}, "is no shape"),
        ({"x": "0x8"}, "is no shape"),
        ({"x": "wide"}, "is no shape"),
    ],
)
def test_wrong_shapes(compiled: Path, asked: list[dict[str, str]], shapes: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        qcompile.export(compiled, shapes=shapes)
    assert asked == []
    assert not compiled.with_name("m.engine.onnx").exists()


def test_a_provider_that_builds_none(compiled: Path) -> None:
    with pytest.raises(UsageError, match="'cpu' builds no engines"):
        qcompile.export(compiled, shapes={"x": f"1x{WIDTH}"}, provider="cpu")


def test_nothing_is_left_where_no_engine_is_written(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "open_session", lambda *_: None)
    with pytest.raises(TargetError, match=f"{TENSORRT} wrote no engines"):
        qcompile.export(compiled, shapes={"x": f"1x{WIDTH}"}, provider="tensorrt")
    assert [p.name for p in compiled.parent.iterdir()] == ["m.onnx"]


@no_gpu
def test_on_the_command_line(compiled: Path) -> None:
    shape = f"x=1x{WIDTH}"
    done = CliRunner().invoke(app, ["export", str(compiled), "--shape", shape])
    assert done.exit_code == 1
    assert "no engine can be built here: TensorrtExecutionProvider does not load" in " ".join(done.output.split())
    assert CliRunner().invoke(app, ["export", str(compiled), "--shape", "x"]).exit_code == 2


def test_options_of_the_plugin(tmp_path: Path) -> None:
    entries, options = context_options(RTX, tmp_path / "m.onnx", embed=False)
    assert entries["ep.context_enable"] == "1"
    assert entries["ep.context_file_path"] == str(tmp_path / "m.onnx")
    assert entries["ep.context_embed_mode"] == "0"
    assert options == {}
    shapes = {"a": ShapeRange.parse("1x2"), "b": ShapeRange.parse("3")}
    assert profile_options(RTX, shapes)["nv_profile_max_shapes"] == "a:1x2,b:3"
    assert profile_options(RTX, {}) == {}
    assert providers.chain(RTX, {}) == []
