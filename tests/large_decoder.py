"""A decoder of any size on disk: the graph in one file, the weights in a file for each layer.

Weights are drawn and written one matrix at a time, so that making it takes the memory of one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx

from tests.passes.llama import constants, layer, matrices

_SPREAD = {"embedding": 1.0, "w_q": 1 / 512}
"""Standard deviations where they are not K^-1/2: scores stay small, or attention would be all or nothing."""

_PAGE = 4096
"""Tensors begin at a page, so that a runtime can map them."""


@dataclass(frozen=True)
class Size:
    """Dimensions of the decoder; a head is 64 wide, and two share keys and values."""

    width: int
    hidden: int
    layers: int
    vocabulary: int

    @property
    def weights(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shape by name, by the file that holds them."""
        found: dict[str, dict[str, tuple[int, ...]]] = {"embedding.bin": {"embedding": (self.vocabulary, self.width)}}
        for i in range(self.layers):
            shapes = matrices(self.width, self.width // 2, self.hidden)
            found[f"layer-{i:02}.bin"] = {f"w_{name}{i}": shape for name, shape in shapes.items()} | {
                f"gamma{norm}{i}": (self.width,) for norm in "af"
            }
        return found | {"head.bin": {"gamma_last": (self.width,), "w_head": (self.width, self.vocabulary)}}

    @property
    def bytes(self) -> int:
        """Of all weights, in float32."""
        return sum(4 * int(np.prod(shape)) for file in self.weights.values() for shape in file.values())


def write_decoder(folder: Path, size: Size, seed: int = 0) -> Path:
    """Make the model in `folder`: ids int64 [B, S] -> logits float [B, S, vocabulary]; returns its path."""
    values = ["embedded", *(f"y{i}" for i in range(size.layers))]
    body = "".join(layer(i, values[i], values[i + 1]) for i in range(size.layers))
    last = values[-1]
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> decoder (int64[B,S] ids) => (float[B,S,{size.vocabulary}] logits) {{'
        f" embedded = Gather (embedding, ids) {body}"
        f" square = Pow ({last}, two) mean = ReduceMean (square, last) kept = Add (mean, eps) root = Sqrt (kept)"
        f" unit = Div ({last}, root) normed = Mul (unit, gamma_last) logits = MatMul (normed, w_head) }}"
    )
    for name, array in constants(size.width // 64, 64).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    rng = np.random.default_rng(seed)
    for location, shapes in size.weights.items():
        with (folder / location).open("wb") as file:
            for name, shape in shapes.items():
                proto.graph.initializer.append(_stored(name, shape, location, file.tell()))
                _draw(rng, name, shape, file)
    path = folder / "decoder.onnx"
    onnx.save(proto, path)
    return path


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...], file: BinaryIO) -> None:
    if name.startswith("gamma"):
        array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    else:
        array = rng.standard_normal(shape, np.float32)
        array *= _SPREAD.get(name.rstrip("0123456789"), shape[0] ** -0.5)
    file.write(array.data)
    file.seek(-file.tell() % _PAGE, 1)


def _stored(name: str, shape: tuple[int, ...], location: str, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": 4 * int(np.prod(shape))}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
