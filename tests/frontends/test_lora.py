"""`qcompile lora` and its functions, from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from qcompile.errors import DataError, ModelError, OutputError, UsageError
from qcompile.frontends import lora
from qcompile.frontends.api import compile
from qcompile.frontends.cli.main import app
from qcompile.runtime.adapters import write_adapter
from qcompile.runtime.session import Session
from tests.passes.adapters import low_rank, named_llama, path, sample, sqnr, write
from tests.passes.harness import Arrays, model_of, outputs

_FEEDS: Arrays = {"x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)}
_WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[B,4] x) => (float[B,3] y) { y = MatMul (x, w) }'
    model = model_of(text, {"w": _WEIGHT})
    next(iter(model.graph)).name = "/m/a/MatMul"
    ir.save(model, tmp_path / "base.onnx")
    return tmp_path / "base.onnx"


def _adapter(folder: Path, module: str = "m.a", seed: int = 0, n: int = 3) -> tuple[Path, Arrays]:
    tensors = low_rank(module, n, 4, seed=seed)
    return write(folder, tensors), {k.rpartition(".lora_")[2]: v for k, v in tensors.items()}


def _expected(tensors: Arrays) -> npt.NDArray[Any]:
    return _FEEDS["x"] @ (_WEIGHT + 2 * (tensors["B.weight"] @ tensors["A.weight"]).T)


def test_merge(base: Path, tmp_path: Path) -> None:
    folder, tensors = _adapter(tmp_path / "french")
    found = CliRunner().invoke(app, ["lora", "merge", str(base), str(folder), "--json"])
    assert found.exit_code == 0, found.output
    assert "1 layer updated" in json.dumps(json.loads(found.stdout)["notices"])
    np.testing.assert_allclose(
        Session(tmp_path / "base.french.onnx", ["cpu"])(_FEEDS)["y"], _expected(tensors), rtol=1e-5
    )
    manifest = Session(tmp_path / "base.french.onnx", ["cpu"]).manifest
    assert str(tmp_path) not in json.dumps(manifest)


def test_export_more_adapters_for_one_base(base: Path, tmp_path: Path) -> None:
    first, one = _adapter(tmp_path / "first")
    second, two = _adapter(tmp_path / "second", seed=1)
    made = lora.export(base, [first], recipe="int4-rtn", prove=False)
    assert made.model.name == "base.int4-rtn.lora-inputs.onnx"
    more = lora.export(made.model, [second])
    assert more.compiled is None
    assert [file.name for file in more.adapters] == ["second.onnx_adapter"]
    session = Session(made.model, ["cpu"], adapters={"1": made.adapters[0], "2": more.adapters[0]})
    plain = session(_FEEDS)["y"] - _FEEDS["x"] @ _WEIGHT  # the error of 4 bits is that of the base
    for name, tensors in (("1", one), ("2", two)):
        error = session(_FEEDS, adapter=name)["y"] - _expected(tensors)
        np.testing.assert_allclose(error, plain, atol=1e-4)


def test_names_that_differ(base: Path, tmp_path: Path) -> None:
    """Said once, in the same words for merge, export and init."""
    folder, tensors = _adapter(tmp_path / "french", module="encoder.0.fc")
    for command in ("merge", "export"):
        found = CliRunner().invoke(app, ["lora", command, str(base), str(folder)])
        assert found.exit_code == 1
        assert "--names" in found.stderr
    names = ["--names", "encoder.{}.fc=m.a"]
    wrong = CliRunner().invoke(app, ["lora", "merge", str(base), str(folder), *names])
    assert wrong.exit_code == 2
    names = ["--names", "encoder.0.fc=m.a"]
    assert CliRunner().invoke(app, ["lora", "merge", str(base), str(folder), *names]).exit_code == 0
    made = lora.export(base, [folder], names=names[1:], prove=False)
    again = CliRunner().invoke(app, ["lora", "export", str(made.model), str(folder), *names, "--overwrite"])
    assert again.exit_code == 0, again.output
    merged = Session(tmp_path / "base.french.onnx", ["cpu"])(_FEEDS)["y"]
    np.testing.assert_allclose(merged, _expected(tensors), rtol=1e-5)
    beside = Session(made.model, ["cpu"], adapters={"french": made.adapters[0]})
    np.testing.assert_allclose(beside(_FEEDS, adapter="french")["y"], merged, rtol=1e-5)
    compiled = compile(base, "int8-weight-only", prove=False).path
    into_codes = lora.merge(compiled, folder, names=names[1:]).model
    np.testing.assert_allclose(Session(into_codes, ["cpu"])(_FEEDS)["y"], merged, rtol=0.05, atol=0.05)


def test_adapters_that_a_compiled_model_does_not_take(base: Path, tmp_path: Path) -> None:
    first, _ = _adapter(tmp_path / "first")
    made = lora.export(base, [first], prove=False)
    other, _ = _adapter(tmp_path / "other", module="m.b")
    with pytest.raises(DataError, match=r"takes no adapter for 1 of 1 modules of 'other': m\.b"):
        lora.export(made.model, [other])
    wide, _ = _adapter(tmp_path / "wide", n=5)
    with pytest.raises(DataError, match=r"'m\.a\.lora_B' of adapter 'wide' is \[2, 5\]"):
        lora.export(made.model, [wide])
    with pytest.raises(UsageError, match="takes adapters already"):
        lora.export(made.model, [first], recipe="nf4", overwrite=True)
    with pytest.raises(OutputError, match="exists already"):
        lora.export(made.model, [first])


def test_files_that_a_session_refuses(base: Path, tmp_path: Path) -> None:
    folder, _ = _adapter(tmp_path / "first")
    made = lora.export(base, [folder], prove=False)
    file = tmp_path / "a.onnx_adapter"
    for parameters, says in (
        ({"m.b.lora_A": np.zeros((4, 2), np.float32)}, r"1 of 1 parameters.*are no inputs of the model: m\.b\.lora_A"),
        (
            {"m.a.lora_A": np.zeros((3, 2), np.float32)},
            r"float32 \[3, 2\], the model wants m\.a\.lora_A float32 \[4, \?\]",
        ),
    ):
        write_adapter(file, parameters)
        with pytest.raises(DataError, match=says):
            Session(made.model, ["cpu"], adapters={"a": file})
    file.write_bytes(b"no adapter at all, and rather longer than its header")
    with pytest.raises(DataError, match="no adapter of ONNX Runtime"):
        Session(made.model, ["cpu"], adapters={"a": file})
    session = Session(made.model, ["cpu"], adapters={"first": made.adapters[0]})
    with pytest.raises(UsageError, match="no adapter 'frist'; did you mean 'first'"):
        session(_FEEDS, adapter="frist")


def test_a_float_model_that_takes_adapters_is_not_compiled(base: Path, tmp_path: Path) -> None:
    folder, _ = _adapter(tmp_path / "first")
    taking = lora.export(base, [folder], prove=False).model
    with pytest.raises(ModelError, match="takes adapters as inputs, for 1 layers"):
        compile(taking, "int8-weight-only", prove=False)
    with pytest.raises(ModelError, match="takes adapters as inputs"):
        lora.merge(taking, folder)


def test_list(base: Path, tmp_path: Path) -> None:
    folder, _ = _adapter(tmp_path / "first")
    made = lora.export(base, [folder], prove=False)
    listed = [CliRunner().invoke(app, ["lora", "list", str(path)]).stdout for path in (base, folder, made.model)]
    assert listed == ["/m/a/MatMul  3 x 4\n", "m.a  3 x 4  rank 2, scale 2\n", "m.a  3 x 4\n"]
    compiled = compile(base, "int8-weight-only", prove=False).path
    assert [layer.shape for layer in lora.layers(compiled)] == [(3, 4)]
    nameless = ir.load(base)
    next(iter(nameless.graph)).name = None
    ir.save(nameless, base)
    assert [layer.name for layer in lora.layers(base)] == ["w"]


def test_a_base_that_stays_float_is_not_blamed_for_it(base: Path, tmp_path: Path) -> None:
    folder, _ = _adapter(tmp_path / "first")
    made = lora.export(base, [folder])
    assert made.compiled is not None
    assert made.compiled.report.kept_float == []


def test_what_was_merged_compiles(base: Path, tmp_path: Path) -> None:
    folder, tensors = _adapter(tmp_path / "french")
    merged = lora.merge(base, folder, prove=False).model
    made = compile(merged, "int8-weight-only", prove=False).path
    np.testing.assert_allclose(Session(made, ["cpu"])(_FEEDS)["y"], _expected(tensors), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("recipe", "target", "overrides"),
    [("int8-dynamic", "cuda", []), ("int8-smoothquant", "cpu", ["smooth-quant.alpha=0.5"])],
)
def test_adapters_beside_a_quantized_decoder(recipe: str, target: str, overrides: list[str], tmp_path: Path) -> None:
    """Merged queries, keys and values, moved scales and placed activations leave the branches as they are."""
    model, feeds = named_llama(), sample()
    tensors: Arrays = {}
    for seed, letter in enumerate("qv"):
        tensors |= low_rank(path(letter, 0), 32 if letter == "q" else 16, 32, seed=seed)
    folder = write(tmp_path / "some", {name: array / 6 for name, array in tensors.items()})
    ir.save(model, tmp_path / "m.onnx")
    samples = [sample(seed) for seed in range(4)] if target == "cpu" else None
    made = lora.export(
        tmp_path / "m.onnx",
        [folder],
        recipe=recipe,
        target=target,
        calibration=samples,
        overrides=overrides,
        prove=False,
    )
    session = Session(made.model, ["cpu"], adapters={"some": made.adapters[0]})
    merged = lora.merge(tmp_path / "m.onnx", folder, prove=False).model
    base, wanted = outputs(model, feeds)[0], Session(merged, ["cpu"])(feeds)["y"]
    assert sqnr(base, wanted) < 20, "the adapter says more than the codes miss"
    assert sqnr(base, session(feeds)["y"]) > 25
    assert sqnr(wanted, session(feeds, adapter="some")["y"]) > 25


def test_init_and_the_way_back(tmp_path: Path) -> None:
    """The base in NF4 with the adapter as inputs lies nearer to the float model than NF4 alone."""
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[B,128] x) => (float[B,64] y) { y = MatMul (x, w) }'
    model = model_of(text, {"w": np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)})
    next(iter(model.graph)).name = "/m/a/MatMul"
    source, options = tmp_path / "m.onnx", ["place-weights.layers=[]"]
    ir.save(model, source)
    feeds = {"x": np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)}
    exact = Session(source, ["cpu"])(feeds)["y"]
    arguments = ["lora", "init", str(source), str(tmp_path / "start"), "--rank", "16", "--set", *options]
    arguments += ["--names", "encoder.0.fc=m.a"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert [layer.name for layer in lora.layers(tmp_path / "start")] == ["encoder.0.fc"]
    made = lora.export(
        tmp_path / "m.loftq.onnx",
        [tmp_path / "start"],
        recipe="nf4",
        names=["encoder.0.fc=m.a"],
        overrides=options,
        prove=False,
    )
    session = Session(made.model, ["cpu"], adapters={"start": made.adapters[0]})
    plain = compile(source, "nf4", overrides=options, prove=False).path
    alone = sqnr(exact, Session(plain, ["cpu"])(feeds)["y"])
    assert sqnr(exact, session(feeds, adapter="start")["y"]) > alone + 2
    with pytest.raises(OutputError, match="holds an adapter already"):
        lora.init(source, tmp_path / "start", overrides=options, overwrite=True)
    with pytest.raises(UsageError, match="quantizes nothing"):
        lora.init(source, tmp_path / "other", recipe="lora-merge")
