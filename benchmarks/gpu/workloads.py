"""The models that are measured end to end, at which sizes, and the same networks in torch.

Pretrained ones come from the zoo. The stacks have the shape of BERT large and of four layers of Llama 8B, with a small
vocabulary, so that the time is that of the layers; their weights are random, and the same everywhere. The tiny ones are
for a trial of the benchmark itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.zoo import efficientnet_lite0, llama_network, minilm, smollm2
from tests.zoo.cache import made
from tests.zoo.model import Sample, ZooModel, stream

Kind = Literal["encoder", "decoder", "images"]
_PAST = 512


@dataclass(frozen=True)
class Point:
    """How much one run gets: rows of `length` tokens (0 for images) after `past` tokens in the cache."""

    label: str
    batch: int
    length: int = 0
    past: int = 0

    def __str__(self) -> str:
        return f"{self.label}{self.batch}" + (f" x {self.length}" if self.length > 1 else "")


@dataclass(frozen=True)
class Workload:
    """One model.

    Attributes:
        source: the float ONNX file, made if need be.
        network: the same in torch, float32, on the CPU.
        feed: what one run gets at a point, in float32.
        zoo: where real samples and a metric come from; None for random weights.
    """

    name: str
    title: str
    kind: Kind
    points: tuple[Point, ...]
    source: Callable[[], Path]
    network: Callable[[], Any]
    feed: Callable[[Point], Sample]
    zoo: ZooModel | None = None

    @property
    def output(self) -> str:
        """The output that is compared."""
        return "sentence_embedding" if self.kind == "encoder" else "logits"

    def samples(self, count: int) -> list[Sample]:
        """For calibration."""
        return self.zoo.calibration(count) if self.zoo else [self.feed(self.points[0])]


def _sentences(*sizes: tuple[int, int]) -> tuple[Point, ...]:
    return tuple(Point("", batch, length) for batch, length in sizes)


def _texts(*prompts: tuple[int, int], decoding: tuple[int, ...] = (1, 8, 32)) -> tuple[Point, ...]:
    first = [Point("prompt ", batch, length) for batch, length in prompts]
    return (*first, *(Point("one token ", batch, 1, _PAST) for batch in decoding))


def _tokens(point: Point, vocabulary: int) -> Sample:
    ids = stream(7, point.batch, point.length).integers(0, vocabulary, (point.batch, point.length))
    return {"input_ids": ids}


def _encoder_feed(vocabulary: int) -> Callable[[Point], Sample]:
    def feed(point: Point) -> Sample:
        tokens = _tokens(point, vocabulary)
        return tokens | {"attention_mask": np.ones_like(tokens["input_ids"])}

    return feed


def _decoder_feed(size: llama_network.Size) -> Callable[[Point], Sample]:
    def feed(point: Point) -> Sample:
        shape, chance = (point.batch, size.shared_heads, point.past, size.head), stream(8, point.batch)
        caches = {f"past_key_values.{c}": chance.standard_normal(shape, np.float32) for c in size.caches}
        return _tokens(point, size.vocabulary) | caches

    return feed


def _images(point: Point) -> Sample:
    return {"x": stream(9, point.batch).standard_normal((point.batch, 3, 224, 224), np.float32)}


_WORDS = 30522
_LLAMA = llama_network.Size(4, 4096, 14336, 1024, 32, 8, 128)
_TINY_LLAMA = llama_network.Size(2, 64, 128, 256, 4, 2, 16)
_FILE = "model.onnx"


def _zoo_model(model: ZooModel, kind: Kind, points: tuple[Point, ...], network: Any, feed: Any) -> Workload:
    return Workload(model.name, model.title, kind, points, model.path, network, feed, model)


def _encoder_stack(name: str, title: str, points: tuple[Point, ...], **size: int) -> Workload:
    def network() -> Any:
        return _seeded(lambda: minilm.bert(**size))

    def export(folder: Path) -> None:
        folder.mkdir()
        minilm.export(network(), str(folder / _FILE))

    return Workload(
        name, title, "encoder", points, lambda: made(f"models/{name}", export) / _FILE, network, _encoder_feed(_WORDS)
    )


def _decoder_stack(name: str, title: str, points: tuple[Point, ...], size: llama_network.Size) -> Workload:
    def network() -> Any:
        return _seeded(lambda: llama_network.decoder(size))

    def export(folder: Path) -> None:
        folder.mkdir()  # weights of more than 2 GB lie in files beside the graph
        llama_network.export(network(), size, str(folder / _FILE))

    return Workload(
        name, title, "decoder", points, lambda: made(f"models/{name}", export) / _FILE, network, _decoder_feed(size)
    )


def _seeded(network: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(0)
    return network().eval()


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        _zoo_model(
            minilm.MiniLM(),
            "encoder",
            _sentences((1, 32), (1, 128), (8, 128), (32, 128), (128, 128)),
            minilm.network,
            _encoder_feed(_WORDS),
        ),
        _zoo_model(
            smollm2.SmolLM2(),
            "decoder",
            _texts((1, 128), (8, 512)),
            smollm2.network,
            _decoder_feed(smollm2.SIZE),
        ),
        _zoo_model(
            efficientnet_lite0.EfficientNetLite0(),
            "images",
            tuple(Point("", batch) for batch in (1, 8, 32, 128)),
            efficientnet_lite0.network,
            _images,
        ),
        _encoder_stack(
            "bert-large-stack",
            "BERT large, random weights",
            _sentences((1, 128), (8, 128), (32, 128), (8, 512)),
            width=1024,
            heads=16,
            hidden=4096,
            layers=24,
        ),
        _decoder_stack("llama-8b-stack", "4 layers of Llama 8B, random weights", _texts((1, 512), (8, 512)), _LLAMA),
        _encoder_stack(
            "tiny-encoder", "A trial encoder", _sentences((1, 8), (8, 8)), width=64, heads=2, hidden=128, layers=2
        ),
        _decoder_stack("tiny-decoder", "A trial decoder", _texts((1, 8), decoding=(1,)), _TINY_LLAMA),
    )
}
TRIALS = ("tiny-encoder", "tiny-decoder")
