from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qcompile.compiler.context import CompileContext
from qcompile.compiler.printer import print_model
from qcompile.compiler.targets import target_named
from qcompile.passes.analyze.synthesis.distilled import mirrored
from qcompile.passes.analyze.synthesize_samples import SynthesizeSamples
from qcompile.passes.prepare.fold_batch_norm import FoldBatchNorm
from tests.golden import assert_golden
from tests.passes.harness import NAMED, context, model_of, outputs, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny tensors: threads that wait for each other cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(seed: int = 0) -> tuple[ir.Model, np.ndarray[Any, Any]]:
    """Three convolutions whose BatchNormalization knows 64 pictures of strong, correlated channels; and those."""
    rng = np.random.default_rng(seed)
    smooth = rng.standard_normal((64, 1, 4, 4)).repeat(4, 2).repeat(4, 3)
    grain = rng.standard_normal((64, 3, 16, 16)) * [[[[0.3]], [[0.2]], [[0.1]]]]
    pictures = (3 + 2 * smooth + grain).astype(np.float32)
    weights: dict[str, Any] = {}
    layers, value = [], pictures
    for i, (inputs, channels) in enumerate([(3, 8), (8, 8), (8, 8)]):
        weights[f"w{i}"] = rng.standard_normal((channels, inputs, 3, 3)).astype(np.float32) / 5
        source = "x" if i == 0 else f"r{i - 1}"
        layers.append(f"c{i} = Conv <pads = [1, 1, 1, 1]> ({source}, w{i})")
        [value] = outputs(
            model_of(
                f"{HEAD} g (float[N,{inputs},16,16] x) => (float[N,{channels},16,16] y) "
                f"{{ y = Conv <pads = [1, 1, 1, 1]> (x, w{i}) }}",
                {f"w{i}": weights[f"w{i}"]},
            ),
            {"x": value},
        )
        mean, variance = value.mean((0, 2, 3)), value.var((0, 2, 3))
        gamma, beta = rng.uniform(0.5, 2, channels), rng.standard_normal(channels)
        for name, vector in zip("gomv", (gamma, beta, mean, variance), strict=True):
            weights[f"{name}{i}"] = vector.astype(np.float32)
        layers.append(f"n{i} = BatchNormalization (c{i}, g{i}, o{i}, m{i}, v{i}) r{i} = Relu (n{i})")
        shape = (1, -1, 1, 1)
        value = (value - mean.reshape(shape)) / np.sqrt(variance + 1e-5).reshape(shape) * gamma.reshape(shape)
        value = np.maximum(value + beta.reshape(shape), 0).astype(np.float32)
    text = f"{HEAD} g (float[N,3,16,16] x) => (float[N,8,16,16] r2) {{ {' '.join(layers)} }}"
    return model_of(text, weights), pictures


def on_cpu(seed: int = 0) -> CompileContext:
    made = context()
    made.target, made.seed = target_named("cpu"), seed
    return made


def ranges(model: ir.Model, names: Sequence[str], pictures: Any) -> np.ndarray[Any, Any]:
    tapped = model.clone()
    found = {v.name: v for node in tapped.graph for v in node.outputs}
    tapped.graph.outputs.extend(found[n] for n in names)
    return np.array([[v.min(), v.max()] for v in outputs(tapped, {"x": pictures})[1:]])


def test_distilled_inputs_have_the_statistics_and_ranges_of_the_training_data() -> None:
    model, pictures = trained()
    on = on_cpu()
    run(model, *NAMED, FoldBatchNorm(), SynthesizeSamples(images=16, iterations=150), on=on)
    assert on.calibration is not None
    assert on.calibration.synthetic
    assert len(on.calibration) == 16
    assert len(on.held_out) == 8
    before, after = (float(w) for w in on.calibration.description.split("loss ")[1].split()[0::3][:2])
    assert after < before / 10, "an order of magnitude"
    made = np.concatenate([s["x"] for s in on.calibration])
    noise = np.random.default_rng(1).standard_normal(made.shape).astype(np.float32)
    found = (ranges(model, ["n0", "n1", "n2"], x) for x in (pictures[:16], made, noise))
    widths = [r[:, 1] - r[:, 0] for r in found]
    off = [np.abs(np.log(w / widths[0])).max() for w in widths[1:]]
    assert off[0] < 0.6 * off[1], "closer than those of Gaussian noise"
    assert any("no calibration data" in n and "distilled" in n for n in on.notices)


def test_the_same_seed_gives_the_same_samples() -> None:
    digests = []
    for seed in (0, 0, 1):
        model, _ = trained()
        on = on_cpu(seed)
        run(model, *NAMED, FoldBatchNorm(), SynthesizeSamples(images=2, iterations=3), on=on)
        assert on.calibration is not None
        digests.append(on.calibration.digest())
    assert digests[0] == digests[1] != digests[2]


def test_samples_of_the_user_stay() -> None:
    model, pictures = trained()
    on = on_cpu()

    class Given:
        description, synthetic, samples = "given", False, [{"x": pictures[:1]}]

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            return iter(self.samples)

        def digest(self) -> str:
            return "given"

    given = on.calibration = Given()
    run(model, *NAMED, FoldBatchNorm(), SynthesizeSamples(), on=on)
    assert on.calibration is given
    assert not on.notices


def test_without_torch_ranges_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pictures = trained()
    on = on_cpu()
    monkeypatch.setitem(sys.modules, "torch", None)
    run(model, *NAMED, FoldBatchNorm(), SynthesizeSamples(), on=on)
    assert on.calibration is None
    assert on.without_samples
    for name, (low, high) in zip(["n1", "r1"], ranges(model, ["n1", "r1"], pictures), strict=True):
        found = on.statistics.range_of(name)
        assert found is not None
        assert 0.7 < (found.high - found.low) / (high - low) < 2
    assert any("qcompile[torch]" in n for n in on.notices)
    assert any("estimated from BatchNormalization" in n for n in on.notices)


def test_a_model_that_knows_nothing_gets_no_samples_and_says_so() -> None:
    model = model_of(f"{HEAD} g (float[N,4] x) => (float[N,4] y) {{ y = MatMul (x, w) }}", {"w": np.eye(4, dtype="f")})
    on = on_cpu()
    run(model, *NAMED, SynthesizeSamples(), on=on)
    assert on.without_samples
    assert on.calibration is None
    assert any("none could be made up" in n for n in on.notices)


VOCABULARY = 50


def embedding() -> np.ndarray[Any, Any]:
    table = np.random.default_rng(5).standard_normal((VOCABULARY, 16)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True) * np.random.default_rng(6).uniform(0.9, 1.1, (VOCABULARY, 1))
    table[0] = 0  # padding
    table[7] *= 50  # never trained
    return table.astype(np.float32)


def test_an_encoder_reads_rows_that_were_trained() -> None:
    model = model_of(
        f"""{HEAD} g (int64[B,S] input_ids, int64[B,S] attention_mask, int64[B,S] position_ids) => (float[B,S,16] y) {{
          e = Gather (table, input_ids) p = Gather (places, position_ids) s = Add (e, p)
          f = Cast <to = 1> (attention_mask) u = Unsqueeze (f, last) y = Mul (s, u) }}""",
        {"table": embedding(), "places": embedding(), "last": np.array([-1])},
    )
    on = on_cpu()
    run(model, *NAMED, on=on)
    before = print_model(model)
    run(model, *NAMED, SynthesizeSamples(token_samples=4, tokens=12), on=on)
    assert on.calibration is not None
    samples = list(on.calibration)
    made = "\n".join(f"{name}: {array[0].tolist()}" for s in samples for name, array in s.items())
    unchanged = "(no change)" if print_model(model) == before else print_model(model)
    assert_golden("passes/synthesize-samples", f"# before\n{before}\n# after\n{unchanged}\n# samples\n{made}\n")
    assert [s["input_ids"].shape for s in samples] == [(1, 3), (1, 6), (1, 9), (1, 12)]
    drawn = np.concatenate([s["input_ids"][0] for s in samples])
    assert not np.isin([0, 7], drawn).any()
    for sample in samples:
        length = sample["input_ids"].shape[1]
        np.testing.assert_array_equal(sample["attention_mask"], np.ones((1, length)))
        np.testing.assert_array_equal(sample["position_ids"], np.arange(length)[None])


@pytest.mark.parametrize("remembers", [True, False])
def test_a_decoder_writes_its_own_text_and_starts_without_a_past(remembers: bool) -> None:
    """The next token is the sum of all before it (counted from 1), and one: it has to see or to remember them."""
    score = np.eye(VOCABULARY, dtype=np.float32) * 60
    present = "float[B,1,T,1] present" if remembers else "float present"
    keep = "Identity" if remembers else "ReduceSum <keepdims = 0>"
    model = model_of(
        f"""{HEAD} g (int64[B,S] input_ids, float[B,1,P,1] past_key, int64[B,T] attention_mask)
          => (float[B,S,{VOCABULARY}] logits, {present}) {{
          m = Cast <to = 1> (attention_mask) e = Gather (numbers, input_ids) u = Unsqueeze (e, axes)
          all = Concat <axis = 2> (past_key, u) present = {keep} (all)
          total = ReduceSum <keepdims = 1> (all, two) next = Add (total, one) wrapped = Mod <fmod = 1> (next, count)
          flat = Reshape (wrapped, shape) i = Cast <to = 7> (flat) row = Gather (score, i)
          zero = Mul (e, none) wide = Unsqueeze (zero, last) logits = Add (wide, row) }}""",
        {
            "score": score,
            "numbers": np.arange(1, VOCABULARY + 1, dtype=np.float32),
            "axes": np.array([1, 3]),
            "two": np.array([2]),
            "last": np.array([-1]),
            "one": np.float32(1),
            "none": np.float32(0),
            "count": np.float32(VOCABULARY),
            "shape": np.array([1, 1]),
        },
    )
    on = on_cpu()
    run(model, *NAMED, SynthesizeSamples(token_samples=3, tokens=9), on=on)
    assert on.calibration is not None
    assert "wrote" in on.calibration.description
    for sample in on.calibration:
        [ids] = sample["input_ids"]
        for length in range(1, len(ids)):
            assert ids[length] == ((ids[:length] + 1).sum() + 1) % VOCABULARY
        assert sample["past_key"].shape == (1, 1, 0, 1)
        assert sample["attention_mask"].shape == (1, len(ids))


def test_mirroring_has_no_edge_in_the_middle() -> None:
    image = np.arange(12.0).reshape(1, 1, 3, 4)
    twice = mirrored(image)
    assert twice.shape == (1, 1, 6, 8)
    np.testing.assert_array_equal(twice[..., :3, :4], image)
    np.testing.assert_array_equal(twice[..., 2, :], twice[..., 3, :])
    np.testing.assert_array_equal(twice, twice[..., ::-1, ::-1])
