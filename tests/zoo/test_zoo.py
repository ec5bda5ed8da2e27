"""The zoo itself: the float models do their task, and its measures are right on cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.zoo import ALL_MODELS, MODELS
from tests.zoo.cache import ZooError, made, python_package
from tests.zoo.model import runner
from tests.zoo.ppocr import matches, overlap
from tests.zoo.silero import frames
from tests.zoo.smollm2 import SmolLM2, SmolLM2Permuted, prompt
from tests.zoo.speech import RATE
from tests.zoo.whisper import WhisperEncoder, features, plain_words, word_errors

_LEVELS = {
    "efficientnet-lite0": 0.85,
    "all-minilm-l6-v2": 0.63,
    "ppocrv4-rec": 0.9,
    "ppocrv4-det": 0.95,
    "silero-vad": 0.98,
    "silero-vad-step": 0.98,
}


@pytest.mark.models
@pytest.mark.parametrize("name", list(MODELS))
def test_the_float_model_does_its_task(name: str) -> None:
    model = MODELS[name]()
    assert model.loss(_LEVELS[name], model.metric(runner(model.path()))) <= 0


@pytest.mark.models
@pytest.mark.parametrize("model", [SmolLM2, SmolLM2Permuted])
def test_the_decoder_reads_news(model: type[SmolLM2]) -> None:
    """The permuted copy is the same function, so both have the same perplexity."""
    decoder = model()
    decoder.windows = 2
    assert decoder.news_perplexity(runner(decoder.path())) == pytest.approx(27.1126, rel=1e-4)


@pytest.mark.models
def test_the_cache_of_the_decoder_stands_for_what_it_read() -> None:
    model = SmolLM2()
    run = runner(model.path())
    [whole] = model.calibration(1)
    first, rest = np.split(whole["input_ids"], 2, axis=1)
    continued = {"input_ids": rest} | {
        name.replace("present", "past_key_values"): value
        for name, value in run(prompt(first)).items()
        if name != "logits"
    }
    assert np.allclose(run(continued)["logits"], run(whole)["logits"][:, rest.shape[1] :], atol=1e-3)


@pytest.mark.models
@pytest.mark.parametrize("name", list(ALL_MODELS))
def test_calibration_is_the_same_every_time(name: str) -> None:
    first, second = ALL_MODELS[name]().calibration(4), ALL_MODELS[name]().calibration(4)
    assert len(first) == 4
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_overlap_and_matches() -> None:
    unit = (0.0, 0.0, 2.0, 2.0)
    assert overlap(unit, unit) == 1
    assert overlap(unit, (1.0, 0.0, 3.0, 2.0)) == pytest.approx(1 / 3)
    assert overlap(unit, (2.0, 0.0, 4.0, 2.0)) == 0
    assert matches([unit, unit], [unit]) == 1, "a true box is found once"


def test_frames_carry_their_context() -> None:
    signal = np.arange(1024 + 100, dtype=np.float32)
    cut = frames(signal)
    assert cut.shape == (2, 576)
    assert not cut[0, :64].any()
    assert np.array_equal(cut[1], signal[448:1024])


def test_an_interrupted_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILE_TEST_CACHE", str(tmp_path))

    def broken(path: Path) -> None:
        path.write_text("half")
        raise ZooError("cut off")

    with pytest.raises(ZooError):
        made("models/x.onnx", broken)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_a_package_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILE_TEST_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ZooError, match=r"package gensim 4\.4\.0 could not be had"):
        python_package("gensim", "4.4.0")


@pytest.mark.models
def test_the_speech_models_understand_prompts() -> None:
    encoder = WhisperEncoder()
    encoder.recordings = 3
    assert encoder.metric(runner(encoder.path())) >= 0.95


def test_word_errors_by_hand() -> None:
    truth = plain_words("Press the pound key, it's #1.")
    assert truth == ["press", "the", "pound", "key", "its"]
    assert word_errors(truth, truth) == 0
    assert word_errors(["press", "a", "pound", "key"], truth) == 2
    assert word_errors([], truth) == 5
    assert word_errors(["well", *truth], truth) == 1


def test_mel_spectrogram_of_a_tone() -> None:
    """A tone of 1 kHz is loudest in the band around mel 15 all the time; nothing is more than 8 decades below it."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(30 * RATE) / RATE).astype(np.float32)
    spectrogram = features(tone)
    assert spectrogram.shape == (1, 80, 3000)
    assert set(spectrogram[0, :, 10:-10].argmax(0)) == {26}
    assert spectrogram.max() - spectrogram.min() == pytest.approx(2, abs=1e-4)
