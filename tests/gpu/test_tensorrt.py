"""TensorRT on a GPU: engines that are kept, engines in a file, and layers that are read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile.runtime.providers import BUILDERS, why_not_loaded
from tests.frontends.models import WIDTH, linear, save

pytestmark = pytest.mark.gpu

ROWS = 8


@pytest.fixture(params=BUILDERS)
def provider(request: pytest.FixtureRequest) -> str:
    if missing := why_not_loaded(request.param):
        pytest.skip(f"{request.param} does not load: {missing}")
    return str(request.param)


@pytest.fixture
def artifact(tmp_path: Path) -> qcompile.Artifact:
    random = np.random.default_rng(0)
    samples = [{"x": random.standard_normal((ROWS, WIDTH)).astype(np.float32)} for _ in range(8)]
    return qcompile.compile(
        save(linear(), tmp_path / "m.onnx"),
        "int8-static",
        calibration=samples,
        target="tensorrt",
        output=tmp_path / "out.onnx",
    )


def test_dispatch_is_proved(provider: str, artifact: qcompile.Artifact) -> None:
    [dispatch] = [proof for proof in artifact.report.proofs if proof.name == "dispatch"]
    assert dispatch.passed, dispatch.detail


def test_engines_are_kept(provider: str, artifact: qcompile.Artifact, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    first = qcompile.Session(artifact.path, [provider], engine_cache=tmp_path / "engines")
    expected = first({"x": x})["y"]
    assert first.provider == provider
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").rglob("*") if path.suffix == ".engine"}
    assert "kept" in first.describe()
    again = qcompile.Session(artifact.path, [provider], engine_cache=tmp_path / "engines")
    np.testing.assert_array_equal(again({"x": x})["y"], expected)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    on_cpu = qcompile.Session(artifact.path, ["cpu"])({"x": x})["y"]
    np.testing.assert_allclose(expected, on_cpu, atol=0.05 * float(np.abs(on_cpu).max()))


def test_engines_in_a_file(provider: str, artifact: qcompile.Artifact) -> None:
    path = qcompile.export(artifact.path, shapes={"x": f"{ROWS}x{WIDTH}"}, provider=provider)
    x = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    session = qcompile.load(path)
    assert session.provider == provider
    expected = qcompile.Session(artifact.path, [provider])({"x": x})["y"]
    np.testing.assert_allclose(session({"x": x})["y"], expected, rtol=1e-3, atol=1e-3)
