"""quantize-kv-cache and lower-kv-cache: a decoder whose cache is codes, read token by token and at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import qcompile
from qcompile.compiler.context import CompileContext
from qcompile.compiler.printer import print_model
from qcompile.compiler.targets import target_named
from qcompile.errors import DataError, ModelError, TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.frontends.cli.main import app
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.lower.lower_kv_cache import LowerKvCache
from qcompile.passes.quantize.quantize_kv_cache import QuantizeKvCache
from qcompile.runtime.kv_cache import METADATA, CacheCodes, decoded, encoded
from tests.golden import assert_golden
from tests.passes.decoder import HEAD, SHARED, VOCABULARY, decoder, feed
from tests.passes.harness import NAMED, Arrays, context, model_of, run
from tests.passes.int8 import head, normal
from tests.passes.samples import Samples

FORMS = [False, True]
CALIBRATION = 16
NAMES = ["attention written out", "one operator"]


def texts(count: int, length: int = 12) -> list[np.ndarray[Any, Any]]:
    return [np.random.default_rng(i).integers(0, VOCABULARY, length) for i in range(count)]


def save(folder: Path, operator: bool) -> Path:
    path = folder / "decoder.onnx"
    onnx.save(ir.to_proto(decoder(operator=operator)), path)
    return path


def artifact(
    folder: Path, operator: bool, form: str = "int8", recipe: str = "kv-int8", prove: bool = False
) -> qcompile.Artifact:
    samples = [feed(text, {}, operator) for text in texts(CALIBRATION)]
    return qcompile.compile(
        save(folder, operator),
        recipe,
        calibration=samples,
        overrides=[f"quantize-kv-cache.format={form}"],
        output=folder / f"{form}.onnx",
        prove=prove,
    )


def read(session: qcompile.Session, text: np.ndarray[Any, Any], step: int, operator: bool) -> np.ndarray[Any, Any]:
    """Logits of a text that is read `step` tokens at a time, from an empty cache of the inputs' own types."""
    past: Arrays = {
        port.name: np.zeros([size or 0 for size in (1, *port.shape[1:])], port.dtype)
        for port in session.inputs
        if port.name.startswith("past")
    }
    logits = []
    for start in range(0, len(text), step):
        outputs = session(feed(text[start : start + step], past, operator))
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        logits.append(outputs["logits"][0])
    return np.concatenate(logits)


@pytest.mark.parametrize("operator", FORMS, ids=NAMES)
@pytest.mark.parametrize(("form", "least"), [("int8", 30), ("int4", 12)])
def test_step_by_step_is_what_it_is_at_once(tmp_path: Path, operator: bool, form: str, least: float) -> None:
    done = artifact(tmp_path, operator, form)
    session, exact = qcompile.Session(done.path), qcompile.Session(tmp_path / "decoder.onnx")
    text = texts(20)[-1]
    whole = read(session, text, 12, operator)
    for step in (1, 5):  # tokens a run
        np.testing.assert_allclose(read(session, text, step, operator), whole, rtol=0, atol=1e-4)
    right = read(exact, text, 12, operator)
    assert 10 * np.log10((right**2).sum() / ((right - whole) ** 2).sum()) > least


@pytest.mark.parametrize("operator", FORMS, ids=NAMES)
@pytest.mark.parametrize(("form", "dtype", "share"), [("int8", "int8", 4), ("int4", "uint8", 8)])
def test_the_cache_takes_a_share_of_the_memory(
    tmp_path: Path, operator: bool, form: str, dtype: str, share: int
) -> None:
    done = artifact(tmp_path, operator, form)
    outputs = {}
    for path in (tmp_path / "decoder.onnx", done.path):
        session = qcompile.Session(path)
        past = {p.name: np.zeros((1, SHARED, 0, p.shape[3]), p.dtype) for p in session.inputs if "past" in p.name}
        outputs[path] = session(feed(texts(1)[0], past, operator))
    before, after = outputs.values()
    for name in (name for name in before if name.startswith("present")):
        assert after[name].dtype == dtype
        assert after[name].nbytes * share == before[name].nbytes
    assert any(f"{256 // share} bytes for each token instead of 256" in n for n in done.report.notices)


@pytest.mark.parametrize("operator", FORMS, ids=NAMES)
def test_the_proofs_convert_the_cache(tmp_path: Path, operator: bool) -> None:
    """Samples are the float model's, some with a cache of it."""
    path = save(tmp_path, operator)
    exact, samples = qcompile.Session(path), []
    for i, text in enumerate(texts(16)):
        first = exact(feed(text[:6], {}, operator))
        past = {k.replace("present", "past_key_values"): v for k, v in first.items() if k != "logits"}
        samples.append(feed(text[6:], past, operator) if i % 2 else feed(text, {}, operator))
    done = qcompile.compile(path, "kv-int8", calibration=samples, output=tmp_path / "c.onnx")
    proofs = {proof.name: proof for proof in done.report.proofs}
    assert proofs["numerics"].passed, proofs["numerics"].detail
    assert {o.name for o in done.report.outputs} >= {"logits", "present_0_key", "present_1_value"}
    assert all(o.sqnr > 25 for o in done.report.outputs)
    assert "float on" in proofs["speed"].detail


def test_with_quantized_weights(tmp_path: Path) -> None:
    """Any recipe takes the two steps: here int8 layers around an int8 cache."""
    steps = [{p.name: p.model_dump(mode="json")} for p in find_recipe("int8-dynamic").passes()]
    at = next(i for i, step in enumerate(steps) if "place-dynamic" in step)
    steps[at:at] = [{"calibrate": {}}, {"quantize-kv-cache": {}}]
    steps.insert(next(i for i, step in enumerate(steps) if "lower-blocks" in step), {"lower-kv-cache": {}})
    recipe = tmp_path / "both.yaml"
    recipe.write_text(json.dumps({"name": "both", "description": "weights and cache", "steps": steps}))
    done = artifact(tmp_path, False, recipe=str(recipe), prove=True)
    assert {p.name: p.passed for p in done.report.proofs}["numerics"]
    assert {p.dtype for p in qcompile.Session(done.path).inputs if "past" in p.name} == {"int8"}


def test_codes_by_hand() -> None:
    scale = np.float32([0.5, 2]).reshape(1, 1, 1, 2)
    values = np.float32([[[[0.74, -3], [100, 1.1], [-100, 4]]]])
    codes = encoded(values, scale, "int8")
    np.testing.assert_array_equal(codes[0, 0], [[1, -2], [127, 1], [-128, 2]])
    np.testing.assert_array_equal(decoded(codes, scale, "int8")[0, 0], [[0.5, -4], [63.5, 2], [-64, 4]])
    halves = encoded(values, scale, "int4")
    np.testing.assert_array_equal(halves[0, 0, :, 0], [9 | 6 << 4, 15 | 9 << 4, 1 | 10 << 4])
    np.testing.assert_array_equal(decoded(halves, scale, "int4")[0, 0], [[0.5, -4], [3.5, 2], [-3.5, 4]])


@pytest.mark.parametrize("operator", FORMS, ids=NAMES)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_model_codes_as_the_runtime_does(tmp_path: Path, operator: bool, form: str) -> None:
    """Closed form: scales are the largest magnitude of each head and column, codes the nearest."""
    done = artifact(tmp_path, operator, form)
    caches, exact = CacheCodes.of(done.path), qcompile.Session(tmp_path / "decoder.onnx")
    seen = [exact(feed(text, {}, operator)) for text in texts(CALIBRATION)]
    largest = np.max([np.abs(o["present_0_key"]).max((0, 2)) for o in seen], axis=0)
    highest = 127 / 1.25 if form == "int8" else 7
    scale = caches.scales["present_0_key"]
    np.testing.assert_allclose(scale, largest.reshape(1, SHARED, 1, HEAD) / highest, rtol=1e-6)
    empty = caches.encode(feed(texts(1)[0], {}, operator))
    got = qcompile.Session(done.path)(empty)["present_0_key"]
    want = encoded(seen[0]["present_0_key"], scale, form)
    assert (got != want).mean() < 0.02, "a tie may tip"


def planned(text: str, weights: Arrays, *samples: Arrays, target: str = "cpu") -> tuple[ir.Model, CompileContext]:
    model, on = model_of(text, weights), context(target_named(target))
    on.calibration = Samples(*samples)
    run(model, *NAMED, Calibrate(), QuantizeKvCache(), LowerKvCache(), on=on)
    return model, on


CACHE = "g (float[B,2,P,4] past, float[B,2,S,4] new) => (float[B,2,T,U] y, float[B,2,T,U] present)"


def test_golden() -> None:
    """The shape of the past is read from the codes; a second cache, which another operator reads too, stays float."""
    text = """g (float[B,2,P,4] past, float[B,2,Q,4] other, float[B,2,S,4] new) =>
      (int64[4] sizes, float[B,2,T,4] y, float[B,2,T,4] present, float[B,2,U,4] kept) {
      sizes = Shape (past) n = Neg (new) present = Concat <axis = 2> (past, n)
      y = Tanh (present) twice = Add (other, other) kept = Concat <axis = 2> (other, n) }"""
    feeds: Arrays = {"past": normal(1, 2, 0, 4), "other": normal(1, 2, 3, 4), "new": normal(1, 2, 3, 4)}
    before = model_of(head(21) + text)
    run(before, *NAMED)
    model, on = planned(head(21) + text, {}, feeds)
    assert_golden(
        "passes/lower-kv-cache", f"# before\n{print_model(before)}\n# after\n{print_model(model, provenance=True)}"
    )
    assert_golden("passes/quantize-kv-cache", f"# before\n{print_model(before)}\n# after\n{_shown(on)}\n")
    assert "the cache 'other' stays float: another operator reads the past as well" in on.notices
    assert json.loads(model.metadata_props[METADATA])[0]["past"] == "past"


def _shown(on: CompileContext) -> str:
    lines = [f"{c.past} -> {c.present}: {c.params.spec}\n{c.params.scale}" for c in on.plan.caches.values()]
    return "\n".join([*lines, *on.notices])


@pytest.mark.parametrize(
    "body",
    [
        "n = Neg (new) present = Concat <axis = 2> (n, past) y = Tanh (present)",
        "n = Neg (new) present = Concat <axis = 3> (past, n) y = Tanh (present)",
        "n = Neg (new) c = Concat <axis = 2> (past, n) present = Neg (c) y = Tanh (c)",
    ],
)
def test_what_is_no_cache(body: str) -> None:
    with pytest.raises(ModelError, match="no key-value cache"):
        planned(
            f"{head(21)}{CACHE} {{ {body} }}",
            {},
            {"past": normal(1, 2, 3, 4), "new": normal(1, 2, 3, 4)},
        )


def test_a_format_that_the_target_does_not_keep(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no key-value cache in fp8-e4m3 that Concat appends to") as refused:
        artifact(tmp_path, False, "fp8-e4m3")
    assert "int8, int4" in str(refused.value)


def test_a_cache_of_zeros_and_values_beyond_the_samples() -> None:
    text = f"{head(21)}{CACHE} {{ n = Neg (new) present = Concat <axis = 2> (past, n) y = Tanh (present) }}"
    zeros: Arrays = {"past": normal(1, 2, 0, 4), "new": np.zeros((1, 2, 3, 4), np.float32)}
    _, on = planned(text, {}, zeros)
    np.testing.assert_array_equal(on.plan.caches["past"].params.scale, 1)
    codes = encoded(np.full((1, 2, 1, 4), 1e9, np.float32), np.ones((1, 2, 1, 4), np.float32), "int8")
    np.testing.assert_array_equal(codes, 127)


def test_a_float_cache_is_refused_with_the_type_that_is_wanted(tmp_path: Path) -> None:
    session = qcompile.Session(artifact(tmp_path, False).path)
    with pytest.raises(DataError, match="'past_key_values_0_key' is float32, the model wants int8"):
        session(feed(texts(1)[0], {}, False))


def test_the_command_line_takes_samples_of_the_float_model(tmp_path: Path) -> None:
    done, samples = artifact(tmp_path, False), tmp_path / "samples"
    samples.mkdir()
    for i, text in enumerate(texts(4)):
        np.savez(samples / f"{i}.npz", **feed(text, {}, False))
    against = ["--against", str(tmp_path / "decoder.onnx"), "--calib", str(samples)]
    run_cli = CliRunner().invoke
    verified = run_cli(app, ["verify", str(done.path), "--target", "cpu", *against])
    assert "numerics" in verified.output
    assert "broke down" not in verified.output
    timed = run_cli(app, ["bench", str(done.path), *against])
    assert timed.exit_code == 0, timed.output


def test_a_calibration_table_serves(tmp_path: Path) -> None:
    path, samples = save(tmp_path, False), [feed(text, {}, False) for text in texts(CALIBRATION)]
    table = qcompile.calibrate(path, "kv-int8", calibration=samples, output=tmp_path / "table.qcal")
    by_table = qcompile.compile(path, "kv-int8", calibration=table, output=tmp_path / "t.onnx", prove=False)
    by_samples = artifact(tmp_path, False)
    ours, theirs = CacheCodes.of(by_table.path).scales, CacheCodes.of(by_samples.path).scales
    for name, scale in theirs.items():
        np.testing.assert_array_equal(ours[name], scale)


def test_padding_does_not_count(tmp_path: Path) -> None:
    """With a mask, positions that hold nothing have no say in the scales."""
    text = f"""{head(21)} g (float[B,2,P,4] past, float[B,2,S,4] new, float[B,S] mask) =>
      (float[B,2,T,4] y, float[B,2,T,4] present) {{
      n = Neg (new) present = Concat <axis = 2> (past, n) y = Tanh (present) }}"""
    new = normal(1, 2, 3, 4)
    padded = np.concatenate([new, np.full((1, 2, 2, 4), 99, np.float32)], 2)
    feeds = {"past": normal(1, 2, 0, 4), "new": padded, "mask": np.float32([[1, 1, 1, 0, 0]])}
    model, on = model_of(text), context()
    on.calibration = Samples(feeds)
    run(model, *NAMED, Calibrate(mask="mask"), QuantizeKvCache(), on=on)
    expected = 1.25 * np.abs(new).max((0, 2)) / 127
    np.testing.assert_allclose(on.plan.caches["past"].params.scale, expected, rtol=1e-6)
