"""Whisper tiny.en (MIT): speech to text, 38 M weights, as two models.

`WhisperEncoder` hears 30 seconds and hands on the keys and values that the decoder attends to; `WhisperDecoder` writes
one token at a time with a cache. Each is judged with the other one in float.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.zoo.cache import exported
from tests.zoo.model import Array, Run, Sample, ZooModel, runner
from tests.zoo.speech import RATE, spoken_sentences
from tests.zoo.whisper_export import BANDS, HEAD, HEADS, OWN, package

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SECONDS = 30
_WINDOW, _HOP = 400, 160
_START, _END = (50_257, 50_362), 50_256  # start of transcript, no time stamps; end of text
_LONGEST = 120
_TEST, _CALIBRATION = 0, 1


class _Whisper(ZooModel):
    metric_name = "words right (1 - word error rate)"
    allowed_drop = 0.02

    recordings = 16

    def metric(self, run: Run) -> float:
        errors = words = 0
        for text, samples in spoken_sentences(_TEST, self.recordings):
            truth = plain_words(text)
            errors += word_errors(plain_words(self.transcribed(run, samples)), truth)
            words += len(truth)
        return 1 - errors / words

    def transcribed(self, run: Run, samples: Array) -> str:
        """The text of a recording, with `run` in the place of this model."""
        raise NotImplementedError

    @property
    def data(self) -> str:
        return f"{self.recordings} recordings of about 20 s: telephone prompts, one after the other"


class WhisperEncoder(_Whisper):
    name = "whisper-tiny-en-encoder"
    title = "Whisper tiny.en, encoder"
    least_units = 30
    calibration_count = 16

    def path(self) -> Path:
        return exported(self.name, "tests.zoo.whisper_export", "encoder")

    def calibration(self, count: int) -> list[Sample]:
        return [{"features": features(samples)} for _, samples in spoken_sentences(_CALIBRATION, count)]

    def transcribed(self, run: Run, samples: Array) -> str:
        return transcription(run, _float("decoder"), samples)

    def timing_sample(self) -> Sample:
        [(_, samples)] = spoken_sentences(_TEST, 1)
        return {"features": features(samples)}


class WhisperDecoder(_Whisper):
    name = "whisper-tiny-en-decoder"
    title = "Whisper tiny.en, decoder"
    least_units = 30
    calibration_count = 32

    def path(self) -> Path:
        return exported(self.name, "tests.zoo.whisper_export", "decoder")

    def calibration(self, count: int) -> list[Sample]:
        """Of each recording the first step, then steps spread over what the float model writes."""
        each, chosen = 4, []
        for _, samples in spoken_sentences(_CALIBRATION, -(-count // each)):
            seen: list[Sample] = []
            transcription(_float("encoder"), _noting(_float("decoder"), seen), samples)
            chosen += [seen[i] for i in np.linspace(0, len(seen) - 1, each).astype(int)]
        return chosen[:count]

    def transcribed(self, run: Run, samples: Array) -> str:
        return transcription(_float("encoder"), run, samples)

    def timing_sample(self) -> Sample:
        [(_, samples)] = spoken_sentences(_TEST, 1)
        seen: list[Sample] = []
        transcription(_float("encoder"), _noting(_float("decoder"), seen), samples)
        return seen[20]


def transcription(encoder: Run, decoder: Run, samples: Array) -> str:
    """Greedy decoding, without the symbols that the model's authors forbid."""
    heard = dict(encoder({"features": features(samples)}))
    cache_ = {f"past.{n}": np.zeros((1, HEADS, 0, HEAD), np.float32) for n in OWN}
    written: list[int] = []
    tokens = np.array([_START], np.int64)
    while len(written) < _LONGEST:
        outputs = decoder({"tokens": tokens} | heard | cache_)
        cache_ = {f"past.{n}": outputs[f"present.{n}"] for n in OWN}
        scores = outputs["logits"][0, -1].copy()
        scores[_forbidden(not written)] = -np.inf
        best = int(scores.argmax())
        if best == _END:
            break
        written.append(best)
        tokens = np.array([[best]], np.int64)
    return str(_tokenizer().decode(written))


def features(samples: Array) -> Array:
    """Log mel spectrogram of 30 s, the rest silence: float32 [1, 80, 3000]."""
    padded = np.zeros(_SECONDS * RATE, np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    padded = np.pad(padded, _WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    decades: Array = np.log10(np.maximum(power @ _mel_bands().T, 1e-10))
    return np.asarray((np.maximum(decades, decades.max() - 8) + 4) / 4, np.float32).T[None]


def plain_words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("'", ""))


def word_errors(found: Sequence[str], truth: Sequence[str]) -> int:
    """Least number of words to insert, drop or change."""
    row = list(range(len(truth) + 1))
    for i, word in enumerate(found, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(truth, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != right))
    return row[-1]


@cache
def _mel_bands() -> Array:
    """Triangles of equal area between points that lie evenly on Slaney's mel scale: [80, 201]."""
    knee, linear, octave = 1000.0, 3 / 200, np.log(6.4) / 27
    top = knee * linear + np.log(RATE / 2 / knee) / octave
    mels = np.linspace(0, top, BANDS + 2)
    points = np.where(mels < knee * linear, mels / linear, knee * np.exp((mels - knee * linear) * octave))
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    left, middle, right = (points[i : i + BANDS, None] for i in range(3))
    rise, fall = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return np.asarray(np.maximum(0, np.minimum(rise, fall)) * 2 / (right - left))


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(package() / "tokenizer.json"))


@cache
def _forbidden(at_start: bool) -> list[int]:
    config = json.loads((package() / "config.json").read_text(encoding="utf-8"))
    return [*config["suppress_ids"], *(config["suppress_ids_begin"] if at_start else ())]


@cache
def _float(part: str) -> Run:
    return runner({"encoder": WhisperEncoder, "decoder": WhisperDecoder}[part]().path())


def _noting(run: Run, seen: list[Sample]) -> Run:
    def noted(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        seen.append(dict(sample))
        return run(sample)

    return noted
