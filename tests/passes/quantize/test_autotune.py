"""Autotuning: what is measured, what is kept, and that placement goes by it. Times here are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.plan import Form
from qcompile.compiler.printer import print_model
from qcompile.compiler.targets import target_named
from qcompile.compiler.timings import Bench, Timings, read_timings
from qcompile.errors import DataError, ModelError, OutputError, RecipeError, TargetError, UsageError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.frontends.job import autotuned
from qcompile.passes.quantize import autotune, stopwatch
from qcompile.passes.quantize.autotune import Autotune
from qcompile.runtime.benchmark import Timing
from qcompile.runtime.kernel_times import RunTime
from tests.golden import assert_golden
from tests.passes.harness import NAMED, context, model_of, run
from tests.passes.int8 import Lowered, head, int8, normal
from tests.sweep.harness import Samples
from tests.targets import cuda_stub

BENCH = Bench(device="a machine", provider="CPUExecutionProvider", versions="1")
GPU = Bench(device="a card", provider="CUDAExecutionProvider", versions="1")
TUNED = autotuned(find_recipe("int8-static").with_overrides(["calibrate.method=min-max"]))
NET = """g (float[N,16,8,8] x) => (float[N,8] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm (f, g, h)
}"""
WEIGHTS = {"w": normal(16, 16, 3, 3), "g": normal(16, 8), "h": normal(8)}
SAMPLES = [{"x": normal(2, 16, 8, 8, seed=i)} for i in range(3)]
LINEAR = "g (float[N,32] x) => (float[N,32] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }"
SQUARES = {"w": normal(32, 32), "v": normal(32, 32, seed=1)}
ROWS = [{"x": normal(4, 32, seed=i)} for i in range(3)]
CODES = {"DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "LinearW8A8"}

Clock = Callable[[onnx.ModelProto, bool], float]


def in_turns(**taken: float) -> Callable[..., dict[str, Timing]]:
    """What comes out when whole models run in turns."""

    def interleaved(models: dict[str, Path], *_: Any) -> dict[str, Timing]:
        for path in models.values():
            onnx.checker.check_model(str(path))
        return {name: Timing((taken[name],) * 3) for name in models}

    return interleaved


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Clock, Bench], list[onnx.ModelProto]]:
    """Sets what a model takes, of the model and whether it computes on codes; returns the models that were timed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "interleaved", in_turns(times=1.0, table=1.5))

    def set_clock(takes: Clock, bench: Bench = BENCH) -> list[onnx.ModelProto]:
        asked: list[onnx.ModelProto] = []

        def run_time(model: bytes, provider: str, layouts: bool, options: dict[str, str]) -> RunTime:
            assert provider == bench.provider
            asked.append(onnx.load_from_string(model))
            onnx.checker.check_model(asked[-1])
            codes = any(node.op_type in CODES for node in asked[-1].graph.node)
            return RunTime(takes(asked[-1], codes) * len(asked[-1].graph.output), 100.0 if layouts else 0.0)

        monkeypatch.setattr(stopwatch, "run_time", run_time)
        monkeypatch.setattr(autotune.Bench, "here", classmethod(lambda cls, provider: bench))
        return asked

    return set_clock


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def tuned(text: str = NET, weights: Any = None, samples: Any = None, **more: Any) -> Lowered:
    recipe = more.pop("recipe", TUNED)
    target = target_named(more.pop("target", "cpu"))
    given, seen = (WEIGHTS, SAMPLES) if weights is None else (weights, samples)
    return int8(head(21) + text, given, seen, recipe=recipe, target=target, **more)


def codes_pay(model: onnx.ModelProto, codes: bool) -> float:
    conversion = operators(model) <= {"QuantizeLinear", "DequantizeLinear"}
    return 10.0 if conversion else 1000.0 if codes else 50000.0


def codes_cost(model: onnx.ModelProto, codes: bool) -> float:
    return 1000.0 if codes else 500.0


def test_codes_where_they_pay(clock: Any) -> None:
    clock(codes_pay)
    result = tuned()
    assert result.forms == {"r": "FULL", "p": "FULL", "f": "PASS", "y": "INPUTS"}
    assert any(
        n.startswith("autotune: 4 of 4 operations are weighed by times on a machine") for n in result.context.notices
    )


def test_float_where_codes_do_not_pay(clock: Any) -> None:
    clock(codes_cost)
    result = tuned()
    assert result.plan.units == {}
    assert "would take longer than float" in result.plan.kept_float["Conv_0"]


def test_one_layer_pays_and_the_other_does_not(clock: Any) -> None:
    """By its shape: the wide one is slow in float."""
    weights = {"w": normal(32, 256), "v": normal(256, 32, seed=1)}

    def takes(model: onnx.ModelProto, codes: bool) -> float:
        if operators(model) <= {"QuantizeLinear", "DequantizeLinear"}:
            return 10.0
        wide = any(list(i.dims) == [32, 256] for i in model.graph.initializer)
        return 1000.0 if codes else (9000.0 if wide else 900.0)

    clock(takes)
    assert tuned(LINEAR, weights, ROWS).forms == {"a": "INPUTS"}


def test_what_is_measured_reads_and_writes_codes(clock: Any) -> None:
    """No conversion stands at the border of an operation on codes, and copies share nothing."""
    asked = clock(codes_pay)
    tuned()
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8}
    for model in asked:
        read = {i.type.tensor_type.elem_type for i in model.graph.input}
        assert len(read) == 1
        assert read <= kinds
        names = [n for node in model.graph.node for n in node.output] + [i.name for i in model.graph.initializer]
        assert len(set(names)) == len(names)
    convolutions = [m for m in asked if "Conv" in operators(m)]
    assert [operators(m) for m in convolutions] == [
        {"Conv", "Relu"},
        {"DequantizeLinear", "Conv", "QuantizeLinear"},
    ]


def test_layouts_are_part_of_the_conversions_of_images(clock: Any) -> None:
    clock(codes_pay)
    measured = tuned().context.measured
    assert measured is not None
    copies, forms, places = 8, 2, 2
    pooled = 2 * 16 + 2 * 16 * 64
    spent = (forms * 100 / copies, forms * 100 / copies)
    by_element = sum(round(s, 1) for s in spent) / (places * 2 * 16 * 64 + pooled)
    assert measured.conversions["x"].quantize == pytest.approx(10 + by_element * 2 * 16 * 64, rel=0.01)
    assert measured.conversions["f"].quantize == 10


def test_cuda_keeps_float_where_an_operator_is_slower(clock: Any) -> None:
    def takes(model: onnx.ModelProto, codes: bool) -> float:
        return 900.0 if codes else 500.0

    asked = clock(takes, GPU)
    result = tuned(LINEAR, SQUARES, ROWS, target="cuda")
    assert result.plan.units == {}, "the table alone makes both LinearW8A8"
    assert any("LinearW8A8" in operators(m) for m in asked)
    float_pieces = [m for m in asked if operators(m) == {"MatMul"}]
    assert float_pieces
    for model in float_pieces:
        assert {i.type.tensor_type.elem_type for i in model.graph.input} == {onnx.TensorProto.FLOAT16}


def test_cuda_has_operators_where_they_pay(clock: Any) -> None:
    clock(codes_pay, GPU)
    assert set(tuned(LINEAR, SQUARES, ROWS, target="cuda").forms.values()) == {"INPUTS"}


@pytest.mark.parametrize("faster", ["LinearW4A16", "MatMulNBits"])
def test_of_two_operators_for_the_same_codes_the_faster_one(clock: Any, faster: str) -> None:
    def takes(model: onnx.ModelProto, codes: bool) -> float:
        return 100.0 if any(name.startswith(faster) for name in operators(model)) else 200.0

    asked = clock(takes, GPU)
    recipe = autotuned(find_recipe("int4-rtn").with_overrides(["precision.dtype=float16"]))
    model, on = model_of(head(21) + LINEAR.replace("N", "4"), SQUARES), context(target_named("cuda"))
    run(model, *recipe.passes(), on=on)
    assert len(asked) == 3, "float and both operators, once for layers of one shape"
    used = [n.op_type for n in model.graph if n.op_type.startswith(("LinearW4A16", "MatMulNBits"))]
    assert [name.startswith(faster) for name in used] == [True, True]


def test_layers_that_quantize_as_they_run(clock: Any) -> None:
    recipe = autotuned(find_recipe("int8-dynamic"))
    clock(codes_cost)
    assert tuned(LINEAR, SQUARES, ROWS, recipe=recipe).plan.units == {}
    clock(codes_pay)
    assert tuned(LINEAR, SQUARES, ROWS, recipe=recipe).plan.units == {}, "known times are not taken again"


def test_times_are_kept_and_not_taken_again(clock: Any, tmp_path: Path) -> None:
    asked = clock(codes_pay)
    first = tuned()
    count, [kept] = len(asked), list((tmp_path / "qcompile" / "timings").iterdir())
    text = kept.read_text()
    second = tuned()
    assert len(asked) == count
    assert kept.read_text() == text
    assert first.data == second.data
    assert any("no time had to be taken" in notice for notice in second.context.notices)


def test_an_operation_that_does_not_run_is_left_out(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(model: onnx.ModelProto, codes: bool) -> float:
        if "Conv" in operators(model) and codes:
            raise ModelError("no kernel")
        return codes_pay(model, codes)

    clock(takes)
    result = tuned()
    measured = result.context.measured
    assert measured is not None
    assert measured.operations["Conv_0"][Form.FULL] == math.inf
    assert "Conv_0" in result.plan.kept_float
    [kept] = [kind for kind in read_timings(BENCH.file()).kinds if kind.startswith("Conv")]
    assert list(read_timings(BENCH.file()).kinds[kept].values())[1] is None


def test_the_tables_placement_stays_where_it_is_faster(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(codes_pay)
    monkeypatch.setattr(autotune, "interleaved", in_turns(times=2.0, table=1.0))
    context = tuned(LINEAR, SQUARES, ROWS).context
    assert context.measured is None
    assert context.plan.units == {}
    assert any("0.50 times as fast: the table's placement stays" in notice for notice in context.notices)


def test_without_a_sample_shapes_that_vary_are_not_known(clock: Any) -> None:
    recipe = autotuned(find_recipe("int8-dynamic"))
    passes = [p for p in recipe.passes() if p.name != "calibrate"]
    asked = clock(codes_cost)
    for text, known in ((LINEAR, 0), (LINEAR.replace("N", "4"), 2)):
        model, on = model_of(head(21) + text, SQUARES), context()
        run(model, *passes, on=on)
        assert f"autotune: {known} of 2 operations" in on.notices[0]
        assert ("give --calib" in on.notices[0]) == (known == 0)
        assert bool(asked) == bool(known)


def test_times_of_another_machine_are_read_and_not_added_to(clock: Any, tmp_path: Path) -> None:
    asked = clock(codes_pay)
    tuned(LINEAR, SQUARES, ROWS)
    path = tmp_path / "times.json"
    known = read_timings(BENCH.file())
    first = next(kind for kind in known.kinds if kind.startswith("MatMul"))
    Timings(bench=BENCH.model_copy(update={"device": "another"}), kinds=known.kinds).save(path)
    before, count = path.read_text(), len(asked)
    assert tuned_from(path, LINEAR).plan.units.keys() == {"MatMul_0", "MatMul_2"}
    del known.kinds[first]
    Timings(bench=BENCH.model_copy(update={"device": "another"}), kinds=known.kinds).save(path)
    found = tuned_from(path, LINEAR)
    assert any("0 of 2 operations are weighed by times on another" in n for n in found.notices)
    assert (path.read_text() == before, len(asked)) == (False, count)


def test_a_file_is_made_and_added_to(clock: Any, tmp_path: Path) -> None:
    clock(codes_pay)
    path = tmp_path / "times.json"
    tuned_from(path, LINEAR)
    few = read_timings(path)
    assert few.bench == BENCH
    assert not BENCH.file().exists()
    tuned_from(path, LINEAR.replace("32", "16"), 16)
    assert read_timings(path).kinds.items() > few.kinds.items()


def tuned_from(path: Path, text: str, width: int = 32) -> CompileContext:
    """Compile with the times of a file."""
    model, on = model_of(head(21) + text, {"w": normal(width, width), "v": normal(width, width, seed=1)}), context()
    on.tuning, on.calibration = path, Samples([{"x": normal(4, width, seed=i)} for i in range(3)])
    run(model, *TUNED.passes(), on=on)
    return on


def test_what_is_wrong_with_a_file(clock: Any, tmp_path: Path) -> None:
    clock(codes_pay)
    path = tmp_path / "times.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="no table of times"):
        tuned_from(path, LINEAR)
    Timings(bench=GPU).save(path)
    with pytest.raises(DataError, match="of CUDAExecutionProvider; target 'cpu' runs on CPUExecutionProvider"):
        tuned_from(path, LINEAR)
    with pytest.raises(OutputError, match="cannot be written"):
        tuned_from(tmp_path / "no" / "times.json", LINEAR)


def test_a_damaged_cache_is_made_anew_and_one_that_cannot_be_written_is_said(clock: Any, tmp_path: Path) -> None:
    clock(codes_pay)
    BENCH.file().parent.mkdir(parents=True)
    BENCH.file().write_text("nonsense")
    tuned(LINEAR, SQUARES, ROWS)
    assert read_timings(BENCH.file()).kinds
    BENCH.file().unlink()
    BENCH.file().parent.rmdir()
    BENCH.file().parent.write_text("a file in the place of the folder")
    result = tuned(LINEAR, SQUARES, ROWS)
    assert any("the times are not kept" in notice for notice in result.context.notices)


def test_without_the_device_nothing_is_measured() -> None:
    with pytest.raises(TargetError, match="CUDAExecutionProvider does not load, no NVIDIA driver"):
        tuned(LINEAR, SQUARES, ROWS, target="cuda")


def test_tensorrt_has_int8_with_its_options_and_no_fp8(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = GPU.model_copy(update={"provider": "TensorrtExecutionProvider"})
    asked = clock(codes_cost, bench)
    given: list[dict[str, str]] = []
    inner = stopwatch.run_time

    def run_time(model: bytes, provider: str, layouts: bool, options: dict[str, str]) -> RunTime:
        given.append(options)
        return inner(model, provider, layouts, options)

    monkeypatch.setattr(stopwatch, "run_time", run_time)
    recipe = autotuned(find_recipe("int8-static"))
    assert tuned(LINEAR, SQUARES, ROWS, recipe=recipe, target="tensorrt").plan.units == {}
    for model, options in zip(asked, given, strict=True):
        codes = any(i.data_type == onnx.TensorProto.INT8 for i in model.graph.initializer)
        assert options.get("trt_int8_enable") == ("1" if codes else None)
    with pytest.raises(TargetError, match="no option that lets an engine compute with"):
        tuned(LINEAR, SQUARES, ROWS, recipe=autotuned(find_recipe("fp8-static")), target="tensorrt")


def test_a_recipe_that_places_nothing_by_time() -> None:
    with pytest.raises(UsageError, match="'fp16' places nothing by its time"):
        autotuned(find_recipe("fp16"))
    assert autotuned(TUNED) is TUNED
    model = model_of(head(21) + LINEAR, SQUARES)
    with pytest.raises(RecipeError, match="no pass behind autotune"):
        run(model, *NAMED, Autotune())


@pytest.mark.cuda_stub
@pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())
def test_on_the_cuda_provider_every_form_opens_and_runs(tmp_path: Path) -> None:
    """Sessions, bindings and events are real; what the times say means nothing."""
    path = tmp_path / "m.onnx"
    ir.save(model_of(head(21) + LINEAR.replace("N", "4"), SQUARES), path)
    found = cuda_stub.run(
        "tests.targets.cuda_tuning",
        tmp_path,
        str(path),
        "int8-static",
        "fp8-static",
        "int8-dynamic",
        QCOMPILE_OPS="off",
    )
    for recipe, codes in (("int8-static", "int8"), ("fp8-static", "fp8-e4m3")):
        kinds = found[recipe]
        assert {kind.split()[0] for kind in kinds} == {"MatMul", "QuantizeLinear", "DequantizeLinear"}
        product = next(forms for kind, forms in kinds.items() if kind.startswith("MatMul"))
        assert [form.split(" sym")[0] for form in product] == ["float16", f"inputs: {codes}"]
        assert all(time is not None and time > 0 for forms in kinds.values() for time in forms.values())
    assert "cuDNN is unavailable" in found["int8-dynamic"], "it is no property of the form, to be kept with the times"


def test_golden(clock: Any) -> None:
    asked = clock(codes_pay)
    result = tuned()
    rows = BENCH.file().read_text(encoding="utf-8")
    one = next(m for m in asked if "Conv" in operators(m) and "DequantizeLinear" in operators(m))
    for field in ("input", "output", "initializer", "node"):
        items = getattr(one.graph, field)
        del items[len(items) // 8 :]
    units = "\n".join(f"{unit.node}: {unit.form}" for unit in result.plan.units.values())
    assert_golden(
        "passes/autotune",
        "# before\nthe first of the copies that a convolution on codes is timed as\n"
        f"{print_model(ir.from_proto(one))}\n"
        f"# after\ntimes\n{rows}\nplaced by them\n{units}\n",
    )
