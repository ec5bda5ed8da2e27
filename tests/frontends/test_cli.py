"""The command line: its shape, its exit codes, and clean output for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import qcompile
from qcompile.frontends import api
from qcompile.frontends.cli.main import app
from qcompile.runtime.providers import why_no_gpu
from tests.frontends.models import image_model, linear, npz_folder, save
from tests.frontends.test_api import NOTHING

assert NOTHING  # registers the pass touch-nothing


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="qcompile", env={"COLUMNS": "200"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(linear(), tmp_path / "m.onnx")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndescription: nothing at all\nsteps:\n  - touch-nothing\n")
    return path


@pytest.fixture(autouse=True)
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs have tests of their own; here they would only take time."""
    monkeypatch.setattr("qcompile.compiler.verification.prove.prove", lambda report, context, artifact: None)


def test_the_bare_form_is_the_main_job(model: Path, recipe: Path, tmp_path: Path) -> None:
    for number, order in enumerate(
        (
            [model, "--recipe", recipe],
            ["--recipe", recipe, model],
            [f"--recipe={recipe}", model],
        )
    ):
        out = tmp_path / f"{number}.onnx"
        result = run(*order, "-o", out)
        assert result.exit_code == 0, result.output
        assert out.exists()
        assert "mine for cpu" in result.stdout
    assert run(model, "--recipe", recipe).exit_code == 0
    assert model.with_name("m.mine.onnx").exists()


def test_a_word_that_is_the_value_of_an_option_is_no_subcommand(model: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    os.chdir(tmp_path)
    assert run("-o", "bench", model, "--recipe", recipe).exit_code == 0
    assert out.exists()


def test_help_shows_the_main_job_and_the_subcommands() -> None:
    text = run("--help").stdout
    for word in (
        "--recipe",
        "--calib",
        "--target",
        "--set",
        "--strict",
        "inspect",
        "diff",
        "verify",
        "bench",
        "recipes",
    ):
        assert word in text
    assert "main-job" not in text
    assert "--against" in run("verify", "--help").stdout
    assert run("--version").stdout.strip() == f"qcompile {qcompile.__version__}"


def test_usage_errors_exit_with_2(model: Path) -> None:
    for arguments in (
        [model, "--bogus"],
        [model, "--target", "gpu"],
        ["inspect"],
        [model],
        ["--recipe", "int8-static"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert "Traceback" not in result.output
    assert "--calib" in run(model).stderr


def test_errors_are_lines_without_traceback(model: Path, recipe: Path) -> None:
    result = run("gone.onnx", "--recipe", recipe)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[:2] == ["error: no such file", "  where: gone.onnx"]


def test_a_lack_of_memory_is_a_line(model: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(api, "compile", full)
    result = run(model, "--recipe", recipe)
    assert result.exit_code == 1
    assert "error: there is not enough memory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.onnx", "--nonsense"], "--nonsense"),
        (["m.onnx", "--target", "abacus"], "abacus"),
        (["m.onnx", "--seed", "x"], "--seed"),
        ([], "MODEL"),
        (["inspect"], "FILE"),
    ],
)
def test_wrong_usage_is_json_too(arguments: list[str], words: str) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)
    assert words in error["error"]
    assert error["hint"].endswith("--help'")
    assert error["exit_code"] == 2
    assert run(*arguments, "--seed", "x").stdout == ""


def test_json_is_clean(model: Path, recipe: Path) -> None:
    result = run(model, "--recipe", recipe, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["recipe"] == "mine"
    result = run(model, "--recipe", recipe, "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)
    assert error["error"] == "the file exists already"
    assert error["exit_code"] == 1
    assert "--overwrite" in error["hint"]
    assert run(model, "--recipe", recipe, "--overwrite").exit_code == 0


def test_strict_exits_with_3_and_keeps_the_artifact(model: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.compiler.report import Proof

    def fails(report: Any, context: Any, artifact: Path) -> None:
        report.proofs.append(Proof(name="speed", passed=False, detail="SLOWER than float"))

    monkeypatch.setattr("qcompile.compiler.verification.prove.prove", fails)
    result = run(model, "--recipe", recipe, "--strict")
    assert result.exit_code == 3
    assert "FAILED" in "\n".join(result.stdout.splitlines()[:4])
    assert "speed: SLOWER than float" in result.stderr
    assert model.with_name("m.mine.onnx").exists()
    assert run(model, "--recipe", recipe, "--overwrite").exit_code == 0
    result = run(model, "--recipe", recipe, "--strict", "--overwrite", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["proofs"][0]["name"] == "speed"


def test_overrides(model: Path, recipe: Path) -> None:
    result = run(model, "--recipe", recipe, "--set", "touch-nothing.word=hello", "--json")
    assert json.loads(result.stdout)["notices"] == ["hello"]
    result = run(model, "--recipe", recipe, "--set", "touch-nothing.wurd=hello", "--overwrite")
    assert result.exit_code == 2
    assert "did you mean 'word'" in result.stderr


def test_recipes() -> None:
    assert "int8-static" in run("recipes").stdout
    assert "int8-static" in json.loads(run("recipes", "--json").stdout)
    shown = json.loads(run("recipes", "show", "int8-static", "--json").stdout)
    assert any(step.get("calibrate", {}).get("method") == "auto" for step in shown["steps"])
    assert "- calibrate" in run("recipes", "show", "int8-static").stdout
    result = run("recipes", "show", "int8-statik")
    assert result.exit_code == 2
    assert "did you mean 'int8-static'" in result.stderr


def test_a_shown_recipe_is_a_recipe(tmp_path: Path) -> None:
    from qcompile.frontends.builtin_recipes import find_recipe

    copy = tmp_path / "copy.yaml"
    copy.write_text(run("recipes", "show", "int8-static").stdout)
    assert find_recipe(copy).passes() == find_recipe("int8-static").passes()


def test_bench(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.runtime.benchmark import ceilings, turns

    def quick(contest: turns.Contest, samples: dict[str, Any], _: float) -> dict[str, turns.Timing]:
        return {name: turns.Timing((4.0,) if name == "1" else (2.0,)) for name in samples}

    monkeypatch.setattr(turns.Contest, "each", quick)
    monkeypatch.setitem(ceilings._VECTOR, "CPUExecutionProvider", 8)
    words = ["bench", model, "--against", model, "--batch", "1,8", "--threads", "1"]
    found = json.loads(run(*words, "--json").stdout)
    assert (found["provider"], found["threads"], found["inputs"]) == ("CPUExecutionProvider", 1, "made up")
    assert [row["shapes"] for row in found["rows"]] == [{"x": [1, 8]}] * 2 + [{"x": [8, 8]}] * 2
    assert [row["times_faster"] for row in found["rows"]] == [None, 2.0] * 2
    picture = tmp_path / "bench.svg"
    shown = run(*words, "--picture", picture).stdout
    assert "2.00x faster" in shown
    assert "batch 8" in shown
    assert picture.read_text().startswith("<svg")
    assert run(*words, "--picture", picture).exit_code == 1
    assert run("bench", model.with_name("gone.onnx")).exit_code == 1
    for sizes in ("0", "1,x", ""):
        assert "are no sizes" in run("bench", model, "--batch", sizes).stderr
    assert "no free sequence" in run("bench", model, "--sequence", "8").stderr
    assert (
        "there are CUDA graphs on CUDAExecutionProvider alone"
        in run("bench", model, "--target", "cpu", "--cuda-graphs").stderr
    )
    if why_no_gpu():
        lost = run("bench", model, "--target", "cuda")
        assert (lost.exit_code, "does not load" in lost.stderr, "--target" in lost.stderr) == (1, True, True)


def test_models_that_cannot_be_compared_are_a_clear_error(model: Path, tmp_path: Path) -> None:
    other = save(image_model(), tmp_path / "image.onnx")
    result = run("bench", model, "--against", other)
    assert result.exit_code == 1
    assert "the model has no input 'image'" in result.stderr
    assert "m.onnx" in result.stderr
    result = run("verify", model, "--target", "cpu", "--against", other)
    assert result.exit_code == 2
    assert "x -> y, not image -> y" in result.stderr


def test_inspect_and_diff(model: Path, recipe: Path, tmp_path: Path) -> None:
    assert json.loads(run("inspect", model, "--json").stdout)
    assert "MatMul" in run("inspect", model).stdout
    assert run(model, "--recipe", recipe).exit_code == 0
    other = model.with_name("m.mine.onnx")
    assert json.loads(run("diff", model, other, "--json").stdout)["before"]["path"] == str(model)
    page = tmp_path / "diff.html"
    assert run("diff", model, other, "--report", page).exit_code == 0
    assert "</html>" in page.read_text()
    assert run("diff", model, other, "--report", page).exit_code == 1
    for command in (["inspect", "gone.onnx"], ["diff", model, "gone.onnx"]):
        result = run(*command)
        assert result.exit_code == 1
        assert "gone.onnx" in result.stderr


def test_verify(model: Path, tmp_path: Path) -> None:
    result = run("verify", model, "--target", "cpu", "--json")
    assert result.exit_code == 0, result.output
    assert {p["name"] for p in json.loads(result.stdout)["proofs"]} >= {"validity", "dispatch"}
    data = npz_folder(tmp_path / "data", 2)
    result = run("verify", model, "--target", "cpu", "--calib", data)
    assert result.exit_code == 2
    assert "--against" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    def complete(words: str) -> str:
        env = os.environ | {"_QCOMPILE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
        env |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        env |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        code = "from qcompile.frontends.cli.main import main; main()"
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False).stdout

    assert "inspect" in complete("qcompile ins")
    assert "--recipe" in complete("qcompile --rec")
    assert "--overwrite" in complete("qcompile model.onnx --over")
    assert "--against" in complete("qcompile verify --aga")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom qcompile.frontends.cli.main import app\n"
        "try:\n    app(['--help'], prog_name='qcompile')\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--recipe" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "pydantic", "torch", "yaml", "jinja2", "networkx"}
    assert not loaded & heavy
    ours = {name for name in done.stderr.split() if name.startswith("qcompile")}
    assert len(ours) < 25
    typers_own = subprocess.run(
        [sys.executable, "-c", "import sys, typer, typer.rich_utils; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    extra = {name for name in done.stderr.split() if name.startswith("rich.")} - set(typers_own)
    assert len(extra) < 15, extra
    assert len(done.stderr.split()) < 420


def test_import_qcompile_is_light() -> None:
    code = "import sys, qcompile; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnx", "numpy", "onnxruntime"} & set(done.stdout.split())


def test_the_api_has_what_the_command_has() -> None:
    from inspect import signature

    from qcompile.frontends.cli.compile import compile_model

    command = set(signature(compile_model).parameters) - {"json_output", "calib"}
    assert command <= set(signature(api.compile).parameters) | set(signature(qcompile.Text).parameters)


def test_autotune_measures_and_keeps_what_it_learned(model: Path, tmp_path: Path) -> None:
    data, out, times = npz_folder(tmp_path / "data", 3), tmp_path / "o.onnx", tmp_path / "times.json"
    result = run(model, "--calib", data, "-o", out, "--tuning", times)
    assert result.exit_code == 0, result.output
    assert "autotune: 1 of 1 operations are weighed by times on" in " ".join(result.output.split())
    assert json.loads(times.read_text())["bench"]["provider"] == "CPUExecutionProvider"
    manifest = api.load(out).manifest
    assert manifest is not None
    assert {"autotune": {}} in manifest["recipe"]["steps"]


def test_autotune_is_for_recipes_that_place_by_time(model: Path) -> None:
    result = run(model, "--recipe", "fp16", "--autotune")
    assert result.exit_code == 2
    assert "places nothing by its time" in result.output
