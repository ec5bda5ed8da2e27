"""One sample at other sizes, and the phases of a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qcompile.errors import UsageError
from qcompile.frontends.model_file import load_model
from qcompile.frontends.samples.sizes import points
from tests.frontends.decoders import cached_decoder


def model(**inputs: tuple[int, list[str | int]]) -> ir.Model:
    """A model of which only the inputs matter: element type and shape by name."""
    given = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", dtype, None) for name, (dtype, _) in inputs.items()]
    return ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", given, outputs)))


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
ENCODER = {"input_ids": (INT, ["batch", "length"]), "attention_mask": (INT, ["batch", "total"])}
PATH = Path("m.onnx")


def test_a_batch_repeats_the_sample() -> None:
    images = model(x=(FLOAT, ["batch", 3, "h", "w"]), state=(FLOAT, [2, "batch", 4]))
    sample = {"x": np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2), "state": np.zeros((2, 1, 4), np.float32)}
    one, three = points(images, PATH, sample, [1, 3], [])
    assert (one.batch, three.batch, three.sequence) == (1, 3, None)
    np.testing.assert_array_equal(three.sample["x"], np.repeat(sample["x"], 3, 0))
    assert three.sample["state"].shape == (2, 3, 4)


def test_a_sequence_repeats_or_cuts_the_tokens() -> None:
    sample = {name: np.array([[1, 2, 3]]) for name in ENCODER}
    short, long = points(model(**ENCODER), PATH, sample, [], [2, 5])
    np.testing.assert_array_equal(short.sample["input_ids"], [[1, 2]])
    np.testing.assert_array_equal(long.sample["attention_mask"], [[1, 2, 3, 1, 2]])
    assert (long.sequence, long.items) == (5, 5)


def test_every_batch_at_every_sequence() -> None:
    found = points(model(**ENCODER), PATH, None, [1, 4], [8, 16])
    assert [(p.batch, p.sequence) for p in found] == [(1, 8), (4, 8), (1, 16), (4, 16)]
    assert all(p.sample["input_ids"].shape == (p.batch, p.sequence) for p in found)


def test_a_sequence_of_features() -> None:
    (point,) = points(model(audio=(FLOAT, ["b", "frames", 80])), PATH, None, [], [7])
    assert point.sample["audio"].shape == (1, 7, 80)


def test_nothing_asked_leaves_the_sample() -> None:
    sample = {"x": np.ones((2, 3), np.float32)}
    (point,) = points(model(x=(FLOAT, ["batch", 3])), PATH, sample, [], [])
    assert point.sample is sample
    assert (point.batch, point.sequence) == (2, None)


def test_a_decoder_runs_in_two_phases(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "m.onnx")
    found = points(load_model(path), path, None, [1, 2], [6])
    assert [(p.phase, p.batch, p.sequence, p.items) for p in found] == [
        ("prefill", 1, 6, 6),
        ("prefill", 2, 6, 12),
        ("decode", 1, 6, 1),
        ("decode", 2, 6, 2),
    ]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    prefill, decode = found[1].sample, found[3].sample
    assert session.run(None, dict(prefill))[0].shape[:2] == (2, 6)
    assert session.run(None, dict(decode))[0].shape[:2] == (2, 1)
    past = next(name for name in decode if name.startswith("past"))
    assert 6 in decode[past].shape
    assert [p.phase for p in points(load_model(path), path, None, [], [])] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("given", "batches", "sequences", "what"),
    [
        ({"x": (FLOAT, [1, 3])}, [2], [], "the batch of the model is fixed"),
        ({"x": (FLOAT, ["batch", 3])}, [], [8], "the model has no free sequence"),
        ({"x": (FLOAT, ["batch", 3, "h", "w"])}, [], [8], "the model has no free sequence"),
        ({"x": (FLOAT, ["b", "n", "m"])}, [], [8], "which dimension is the sequence"),
    ],
)
def test_sizes_that_a_model_does_not_have(
    given: dict[str, tuple[int, list[str | int]]], batches: list[int], sequences: list[int], what: str
) -> None:
    with pytest.raises(UsageError, match=what) as raised:
        points(model(**given), PATH, None, batches, sequences)
    assert "'x' float32" in raised.value.hint
