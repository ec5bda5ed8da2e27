"""Text as calibration data: windows that fit the model, caches half filled, and faults in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import qcompile
from qcompile.errors import QCompileError
from qcompile.frontends.calibration_data import Calibration, CheckedSamples, open_samples
from qcompile.frontends.cli.main import app
from qcompile.frontends.model_file import load_model
from qcompile.runtime.session import Session
from tests.frontends.decoders import WORDS, bigram_decoder, cached_decoder, ids_of, letters, word_tokenizer
from tests.frontends.models import linear, npz_folder, save
from tests.passes.harness import model_of

COUNT = len(WORDS)
_ENCODER = """<ir_version: 10, opset_import: ["": 20]> encoder (
  int32[batch,12] input_ids, float[batch,12] attention_mask, int32[batch,12] token_type_ids
) => (float[batch,12,4] y) {
  rows = Gather (table, input_ids) axes = Constant <value_ints = [2]> () kinds = Cast <to = 1> (token_type_ids)
  both = Add (attention_mask, kinds) column = Unsqueeze (both, axes) y = Mul (rows, column)
}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    word_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "text.txt").write_text(letters(100))
    return tmp_path


def opened(model: Path, given: Calibration) -> CheckedSamples:
    return open_samples(given, load_model(model), model)


def test_every_other_window_has_its_first_half_in_the_cache(folder: Path) -> None:
    model = cached_decoder(folder / "m.onnx")
    source = opened(model, qcompile.Text(folder / "text.txt", window=10, windows=4))
    assert source.description == "4 windows of 10 tokens of text.txt"
    ids, run = ids_of((folder / "text.txt").read_text()), Session(model, ["cpu"])
    for _ in range(2):
        samples = list(source)
        for number, (sample, start) in enumerate(zip(samples, (0, 20, 50, 70), strict=True)):
            done = 5 if number % 2 else 0
            np.testing.assert_array_equal(sample["input_ids"][0], ids[start + done : start + 10])
            np.testing.assert_array_equal(sample["position_ids"][0], np.arange(done, 10))
            assert sample["attention_mask"].shape == (1, 10)
            assert sample["past_key_values.0.key"].shape == (1, 1, done, 8)
        whole = {k: np.concatenate([samples[1][k]] * 2, 1) for k in ("input_ids", "position_ids")}
        whole["input_ids"][0, :5], whole["position_ids"] = ids[20:25], np.arange(10)[None]
        whole |= {"attention_mask": samples[1]["attention_mask"], "past_key_values.0.key": np.zeros((1, 1, 0, 8), "f4")}
        np.testing.assert_allclose(run(whole)["logits"][:, 5:], run(samples[1])["logits"], rtol=1e-5, atol=1e-6)


def test_an_encoder_of_fixed_length(folder: Path) -> None:
    import onnx_ir as ir

    model = folder / "m.onnx"
    ir.save(model_of(_ENCODER, {"table": np.ones((COUNT, 4), np.float32)}), model)
    word_tokenizer(folder / "tokenizer.json", start=True)
    samples = list(opened(model, folder / "text.txt"))
    assert len(samples) == 100 // 11
    for sample in samples:
        assert {name: array.dtype for name, array in sample.items()} == {
            "input_ids": np.int32, "attention_mask": np.float32, "token_type_ids": np.int32
        }  # fmt: skip
        assert sample["input_ids"].shape == (1, 12)
        assert sample["input_ids"][0, 0] == WORDS.index("<s>")
        assert sample["attention_mask"].all()
        assert not sample["token_type_ids"].any()


def test_files_of_every_kind_give_the_same_samples(folder: Path, tmp_path: Path) -> None:
    model, text = bigram_decoder(folder / "m.onnx", np.ones((COUNT, COUNT))), (folder / "text.txt").read_text()
    expected = opened(model, qcompile.Text(folder / "text.txt", window=10)).digest()
    words = text.split()
    parts = [" ".join(words[:40]), " ".join(words[40:])]
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in parts) + "\n\n")
    (folder / "plain.jsonl").write_text("\n".join(map(json.dumps, parts)))
    (folder / "texts").mkdir()
    for name, part in zip("ab", parts, strict=True):
        (folder / "texts" / f"{name}.txt").write_text(part)
    for name in ("lines.jsonl", "plain.jsonl", "texts"):
        assert opened(model, qcompile.Text(folder / name, folder / "tokenizer.json", 10)).digest() == expected


def test_a_folder_of_arrays_with_a_note_in_it_is_no_text(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", 3)
    (folder / "README.md").write_text("where these come from")
    assert len(opened(save(linear(), tmp_path / "m.onnx"), folder)) == 3


def fault(model: Path, text: Path, **options: Any) -> QCompileError:
    with pytest.raises(QCompileError) as caught:
        opened(model, qcompile.Text(text, **options))
    return caught.value


def test_faults(folder: Path) -> None:
    model, text = cached_decoder(folder / "m.onnx"), folder / "text.txt"
    assert "100 tokens, fewer than a window of 256" in fault(model, text).what
    assert "no such text" in fault(model, folder / "other.txt").what
    assert "no such tokenizer" in fault(model, text, tokenizer=folder / "other.json").what
    assert "not a tokenizer file" in fault(model, text, tokenizer=text).what
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    error = fault(model, folder / "bad.jsonl")
    assert 'no text under the key "text"' in error.what
    assert error.where.endswith("bad.jsonl:2")
    (folder / "bad.jsonl").write_text("nonsense\n")
    assert "no JSON" in fault(model, folder / "bad.jsonl").what
    assert "takes no tokens" in fault(save(linear(), folder / "linear.onnx"), text).what


def test_tokens_beyond_the_table(folder: Path) -> None:
    model = bigram_decoder(folder / "m.onnx", np.ones((20, COUNT)))
    error = fault(model, folder / "text.txt", window=10)
    assert "token 25 is beyond the model's vocabulary of 20" in error.what


def test_names_that_text_does_not_fill(folder: Path) -> None:
    import onnx

    model = onnx.load(cached_decoder(folder / "m.onnx"))
    for name, what in (("past_key_values.0.key", "no output continues"), ("position_ids", "does not fill the input")):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for port in copy.graph.input:
            port.name = port.name.replace(name, "past.strange" if "past" in name else "places_of")
        for node in copy.graph.node:
            node.input[:] = [
                ("past.strange" if "past" in name else "places_of") if given == name else given for given in node.input
            ]
        assert what in fault(save(copy, folder / "other.onnx"), folder / "text.txt", window=10).what


def test_the_command_line(folder: Path) -> None:
    model = bigram_decoder(folder / "m.onnx", np.ones((COUNT, COUNT)))
    words = ["calibrate", str(model), "--calib", str(folder / "text.txt"), "--windows", "3", "--window", "10"]
    done = CliRunner().invoke(app, [*words, "-o", str(folder / "m.qcal"), "--json"], prog_name="qcompile")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["samples"] == 3
    wrong = CliRunner().invoke(
        app, ["bench", str(model), "--calib", "synthetic", "--window", "9"], prog_name="qcompile"
    )
    assert wrong.exit_code == 2
    assert "how to read a text" in wrong.output
