"""Finding a library, opening it, and which models get it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.artifact import write_model
from qcompile.compiler.operators import catalogue
from qcompile.errors import TargetError
from qcompile.runtime.ops import library as libraries
from qcompile.runtime.ops import places
from qcompile.runtime.ops.kernels import choose
from qcompile.runtime.ops.library import open_library
from qcompile.runtime.providers import CPU, CUDA, TENSORRT
from qcompile.runtime.session import Session
from tests.operators.running import model_of

X = np.array([[1, -2, 3, 127]], np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One QuantizeRows, as an artifact."""
    path = tmp_path / "model.onnx"
    write_model(ir.from_proto(model_of(catalogue()["QuantizeRows"], {"x": ["M", 4]})), path, {"target": "cpu"})
    return path


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a variable nor a cache; each test puts there what it wants."""
    monkeypatch.delenv(places.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "PACKAGES", ("qcompile_ops_for_tests",))


def test_without_a_library_the_definition_runs(model: Path) -> None:
    session = Session(model)
    assert session.kernels.library is None
    assert "1 kind of qcompile's operators run by definition: no library of kernels is here" in session.describe()
    np.testing.assert_array_equal(session({"x": X})["x_q"], X)


def test_a_named_library_runs(model: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.VARIABLE, str(library))
    session = Session(model)
    assert session.kernels.with_kernel == ("QuantizeRows",)
    assert f"operators run by kernels of {library.resolve()} (QCOMPILE_OPS)" in session.describe()
    np.testing.assert_array_equal(session({"x": X})["x_q"], X)
    monkeypatch.setenv(places.VARIABLE, "off")
    assert Session(model).kernels.library is None


def test_the_kernel_is_what_runs(model: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in the graph that the runtime executes."""
    from qcompile.compiler.verification.optimized import optimize

    assert "QuantizeRows" not in {node.op_type for node in optimize(model, CPU).nodes}
    monkeypatch.setenv(places.VARIABLE, str(library))
    assert [node.op_type for node in optimize(model, CPU).nodes] == ["QuantizeRows"]


def test_a_model_of_no_operator_of_ours_needs_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.frontends.models import linear, save

    monkeypatch.setenv(places.VARIABLE, str(tmp_path / "missing.so"))
    session = Session(save(linear(), tmp_path / "plain.onnx"), ["cpu"])
    assert session.kernels.operators == ()
    assert "operators" not in session.describe()


def test_places(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable, a package, what was built from these very sources; there a build with CUDA comes first."""
    assert places.find() is None
    for name in ("0123456789abcdef-onnxruntime21", f"{places.sources_digest()}-onnxruntime21"):
        (places.cache() / name).mkdir(parents=True)
        (places.cache() / name / places.FILE).write_bytes(library.read_bytes())
    built = places.find()
    assert built is not None
    assert (built.path.parent.name, built.origin) == (f"{places.sources_digest()}-onnxruntime21", "built here")
    with_cuda = places.cache() / f"{places.sources_digest()}-onnxruntime21-cuda13.0" / places.FILE
    with_cuda.parent.mkdir()
    with_cuda.touch()
    assert places.find() == places.Place(with_cuda, "built here")
    package = tmp_path / "site" / "qcompile_ops_for_tests"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / places.FILE).touch()
    monkeypatch.syspath_prepend(str(package.parent))
    assert places.find() == places.Place(package / places.FILE, "package qcompile_ops_for_tests")
    monkeypatch.setenv(places.VARIABLE, "mine.so")
    assert places.find() == places.Place(Path("mine.so"), "QCOMPILE_OPS")


def test_the_cpu_has_faster_kernels_of_its_own(model: Path, library: Path) -> None:
    at = places.cache() / f"{places.sources_digest()}-onnxruntime21" / places.FILE
    at.parent.mkdir(parents=True)
    at.write_bytes(library.read_bytes())
    assert "faster" in choose(model, CPU).why
    assert "no cuda kernel for QuantizeRows" in choose(model, CUDA).why
    assert "compiles them itself" in choose(model, TENSORRT).why
    assert choose(model.read_bytes(), CUDA).by_body == ("QuantizeRows",)


def test_another_operator_of_the_same_name(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    proto = model_of(catalogue()["QuantizeRows"], {"x": ["M", 4]})
    proto.functions[0].input[0] = "activations"
    for node in proto.functions[0].node:
        node.input[:] = ["activations" if name == "x" else name for name in node.input]
    onnx.save(proto, tmp_path / "other.onnx")
    monkeypatch.setenv(places.VARIABLE, str(library))
    session = Session(tmp_path / "other.onnx", ["cpu"])
    assert "another QuantizeRows: QuantizeRows(x) -> (x_q, x_scale), the model has QuantizeRows(act" in str(
        session.kernels
    )
    np.testing.assert_array_equal(session({"x": X})["x_q"], X)


def test_an_unknown_operator_runs_by_definition_beside_kernels(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    proto = model_of(catalogue()["QuantizeRows"], {"x": ["M", 4]})
    proto.graph.node[0].op_type = proto.functions[0].name = "QuantizeColumns"
    other = model_of(catalogue()["QuantizeRows"], {"x": ["M", 4]})
    proto.functions.extend(other.functions)
    onnx.save(proto, tmp_path / "m.onnx")
    monkeypatch.setenv(places.VARIABLE, str(library))
    kernels = Session(tmp_path / "m.onnx", ["cpu"]).kernels
    assert (kernels.with_kernel, kernels.by_body) == (("QuantizeRows",), ("QuantizeColumns",))


def broken(library: Path, how: str, folder: Path) -> Path:
    path = folder / "broken.so"
    data = library.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "short": data[:40], "text": b"no library", "empty": b""}[how])
    return path


@pytest.mark.parametrize("how", ["cut", "short", "text", "empty"])
def test_a_damaged_library_is_an_error(how: str, library: Path, tmp_path: Path) -> None:
    """Seen in a process of its own: to map a file that was cut off can kill it."""
    code = "import sys, pathlib as p, qcompile.runtime.ops.library as l; l.open_library(p.Path(sys.argv[1]))"
    path = broken(library, how, tmp_path)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "qcompile.errors.TargetError: the library of kernels " in done.stderr
    assert str(path) in done.stderr


def test_a_library_of_something_else(tmp_path: Path) -> None:
    import onnxruntime

    [other] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime_providers_shared.so")
    with pytest.raises(TargetError, match=r"no library of qcompile's operators .*\.so. -> build it again"):
        open_library(other)
    with pytest.raises(TargetError, match="is not there"):
        open_library(tmp_path / "nowhere.so")


def test_a_library_for_a_newer_runtime(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries._open.cache_clear()
    monkeypatch.setattr(libraries, "runtime_version", lambda: 17)
    with pytest.raises(TargetError, match=r"built for ONNX Runtime 1\.\d+, 1\.17 is installed"):
        open_library(library)
    libraries._open.cache_clear()


def test_a_broken_library_is_an_error_when_named_and_else_a_warning(
    model: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken(library, "cut", tmp_path)
    monkeypatch.setenv(places.VARIABLE, str(path))
    with pytest.raises(TargetError, match="damaged"):
        Session(model)
    monkeypatch.delenv(places.VARIABLE)
    monkeypatch.setattr(places, "find", lambda: places.Place(path, "built here"))
    kernels = choose(model, CUDA)
    assert kernels.broken
    with pytest.warns(UserWarning, match=r"damaged .*run by their definitions"):
        kernels.register(None)


def test_sessions_share_the_library(model: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain is made once and outlives each session."""
    monkeypatch.setenv(places.VARIABLE, str(library))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = Session(model), Session(model)
        del first
        np.testing.assert_array_equal(second({"x": X})["x_q"], X)
        np.testing.assert_array_equal(Session(model)({"x": X})["x_q"], X)


def test_the_report_says_how_operators_ran(model: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.compiler.targets import target_named
    from qcompile.compiler.verification.prove import verify

    assert "run by definition: no library" in verify(model, target_named("cpu")).kernels
    monkeypatch.setenv(places.VARIABLE, str(library))
    assert f"run by kernels of {library.resolve()}" in verify(model, target_named("cpu")).kernels
