"""`qcompile eval`: figures with closed forms, caches in steps, and faults in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import qcompile
from qcompile.errors import DataError, ModelError, QCompileError, UsageError
from qcompile.frontends.cli.main import app
from tests.frontends.decoders import (
    WORDS,
    bigram_decoder,
    cached_decoder,
    ids_of,
    letters,
    word_tokenizer,
)
from tests.frontends.models import linear, save

COUNT = len(WORDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and a text of 100 tokens."""
    word_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "text.txt").write_text(letters(100))
    return tmp_path


def judged(model: Path, **options: Any) -> qcompile.Evaluation:
    text = qcompile.Text(
        model.with_name("text.txt"), **{k: options.pop(k) for k in ("window", "windows") if k in options}
    )
    return qcompile.evaluate(model, text, **options)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(folder: Path) -> None:
    found = judged(bigram_decoder(folder / "m.onnx", np.ones((COUNT, COUNT))), window=10)
    assert found.perplexity == pytest.approx(COUNT, rel=1e-12)
    assert (found.windows, found.tokens, found.stride, found.step) == (10, 90, 10, 10)
    assert found.agreement is None


def test_against_a_reference_in_closed_form(folder: Path) -> None:
    """The float model gives each token's successor ln(c) more than the others: p = c / (c + n - 1)."""
    table = np.zeros((COUNT, COUNT))
    table[np.arange(COUNT), (np.arange(COUNT) + 1) % COUNT] = np.log(9)
    reference = bigram_decoder(folder / "float.onnx", table)
    model = bigram_decoder(folder / "m.onnx", np.zeros((COUNT, COUNT)))
    (folder / "text.txt").write_text(" ".join(WORDS[:26]))
    found = judged(model, reference=reference, window=26)
    likely, other = 9 / (COUNT + 8), 1 / (COUNT + 8)
    assert found.reference_perplexity == pytest.approx(1 / likely, rel=1e-6)
    closed = likely * np.log(likely * COUNT) + (COUNT - 1) * other * np.log(other * COUNT)
    assert found.divergence == pytest.approx(closed, rel=1e-6)
    assert found.agreement == 0.0
    same = judged(reference, reference=reference, window=26)
    assert (same.agreement, same.divergence, same.perplexity) == (1.0, 0.0, same.reference_perplexity)


def test_steps_through_the_cache_change_nothing(folder: Path) -> None:
    model = cached_decoder(folder / "m.onnx")
    whole = judged(model, window=20)
    assert whole.step == 20
    for step in (1, 4, 10):
        found = judged(model, window=20, step=step)
        assert found.step == step
        assert found.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


def test_a_cache_of_codes_is_read_again_unless_asked_otherwise(folder: Path) -> None:
    model, reference = cached_decoder(folder / "codes.onnx", codes=True), cached_decoder(folder / "float.onnx")
    found = judged(model, reference=reference, window=16)
    assert found.step == 2
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=0.2)
    assert found.divergence
    assert judged(model, window=16, step=16).step == 16


def test_a_stride_judges_each_token_once(folder: Path) -> None:
    """Bigrams look back one token, so all that windows change is which tokens are judged."""
    table = np.random.default_rng(0).standard_normal((COUNT, COUNT)).astype(np.float32)
    model = bigram_decoder(folder / "m.onnx", table)
    ids = ids_of((folder / "text.txt").read_text())
    surprise = np.log(np.exp(table.astype(float)).sum(1))[ids[:-1]] - table[ids[:-1], ids[1:]]
    found = judged(model, window=40, stride=20)
    assert (found.windows, found.tokens) == (4, 99)
    assert found.perplexity == pytest.approx(np.exp(surprise.mean()), rel=1e-6)
    side_by_side = judged(model, window=40)
    parts = np.concatenate([surprise[:39], surprise[40:79]])
    assert side_by_side.perplexity == pytest.approx(np.exp(parts.mean()), rel=1e-6)


def test_the_token_at_the_start_stands_before_every_window(folder: Path) -> None:
    table = np.random.default_rng(1).standard_normal((COUNT, COUNT)).astype(np.float32)
    model = bigram_decoder(folder / "m.onnx", table)
    word_tokenizer(folder / "tokenizer.json", start=True)
    (folder / "text.txt").write_text("a b c d e f")
    wide, start = table.astype(float), WORDS.index("<s>")
    before, came = [start, 0, 1, start, 3, 4], [0, 1, 2, 3, 4, 5]
    surprise = np.log(np.exp(wide).sum(1))[before] - wide[before, came]
    found = judged(model, window=4)
    assert (found.windows, found.tokens) == (2, 6)
    assert found.perplexity == pytest.approx(np.exp(surprise.mean()), rel=1e-6)


def test_tokens_that_are_ruled_out(folder: Path) -> None:
    table = np.zeros((COUNT, COUNT))
    table[:, -1] = -np.inf  # <s> never comes
    model = bigram_decoder(folder / "m.onnx", table)
    found = judged(model, reference=model, window=10)
    assert found.perplexity == pytest.approx(COUNT - 1)
    assert found.divergence == 0
    table[:, 0] = -1e5  # a comes all the same
    assert judged(bigram_decoder(folder / "n.onnx", table), window=10).perplexity == np.inf


def test_figures_are_the_same_each_time(folder: Path) -> None:
    model, reference = cached_decoder(folder / "m.onnx", 0.9), cached_decoder(folder / "float.onnx")
    first, second = (judged(model, reference=reference, window=10) for _ in range(2))
    assert first.tokens_per_second > 0
    for name in ("perplexity", "reference_perplexity", "agreement", "divergence", "tokens"):
        assert getattr(first, name) == getattr(second, name)


class TestFaults:
    def fault(self, model: Path, **options: Any) -> QCompileError:
        with pytest.raises(QCompileError) as caught:
            judged(model, **options)
        return caught.value

    def test_text(self, folder: Path) -> None:
        model = cached_decoder(folder / "m.onnx")
        assert "fewer than a window of 512" in self.fault(model).what
        for content, what in (("", "there is no text"), (b"\xff\xfe\x00", "cannot be read")):
            (folder / "text.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
            error = self.fault(model, window=10)
            assert isinstance(error, DataError)
            assert what in error.what
        (folder / "text.txt").unlink()
        assert isinstance(self.fault(model), UsageError)

    def test_tokenizer(self, folder: Path) -> None:
        model = cached_decoder(folder / "m.onnx")
        (folder / "tokenizer.json").write_text('{"model_type": "llama"}')
        assert "not a tokenizer file" in self.fault(model, window=10).what
        (folder / "tokenizer.json").unlink()
        error = self.fault(model, window=10)
        assert "needs the model's tokenizer" in error.what
        assert "--tokenizer" in error.hint

    def test_tokens_beyond_the_vocabulary(self, folder: Path) -> None:
        model = bigram_decoder(folder / "m.onnx", np.ones((COUNT, COUNT)))
        small = save_resized(model, folder / "small.onnx", 20)
        (folder / "text.txt").write_text(letters(99) + " z")
        error = self.fault(small, window=10)
        assert "token 25 is beyond the model's vocabulary of 20" in error.what
        assert "another model" in error.hint

    def test_windows_and_steps(self, folder: Path) -> None:
        model, plain = cached_decoder(folder / "m.onnx"), bigram_decoder(folder / "p.onnx", np.ones((COUNT, COUNT)))
        assert "does not go into windows of 20" in self.fault(model, window=20, step=7).what
        assert "no cache" in self.fault(plain, window=20, step=5).what
        assert "leaves some out" in self.fault(model, window=20, stride=21).what
        with pytest.raises(UsageError, match="at least 1"):
            qcompile.Text("text.txt", window=0)

    def test_logits_that_mean_nothing(self, folder: Path) -> None:
        assert "NaN" in self.fault(bigram_decoder(folder / "m.onnx", np.full((COUNT, COUNT), np.nan)), window=10).what

    def test_other_models(self, folder: Path) -> None:
        error = self.fault(save(linear(), folder / "linear.onnx"), window=10)
        assert isinstance(error, ModelError)
        assert "takes no tokens" in error.what


def save_resized(source: Path, path: Path, rows: int) -> Path:
    """The bigrams of the first `rows` tokens only."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    [table] = model.graph.initializer
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:rows, :rows].copy(), table.name))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = rows
    return save(model, path)


def test_the_command_line(folder: Path) -> None:
    model, reference = cached_decoder(folder / "m.onnx", 0.9), cached_decoder(folder / "float.onnx")
    words = ["eval", str(model), "--text", str(folder / "text.txt"), "--window", "10", "--reference", str(reference)]
    shown = CliRunner().invoke(app, words, prog_name="qcompile", env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "perplexity" in shown.stdout
    assert "next tokens agree" in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--json", "--windows", "2"], prog_name="qcompile").stdout)
    assert (found["windows"], found["tokens"], found["window"]) == (2, 18, 10)
    assert 0 < found["divergence"] < 1
    wrong = CliRunner().invoke(app, [*words, "--stride", "0", "--json"], prog_name="qcompile")
    assert wrong.exit_code == 2
    assert "stride" in json.loads(wrong.stdout)["error"]
