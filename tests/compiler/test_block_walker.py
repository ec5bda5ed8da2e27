"""Blocks put together again are the whole model, in float and quantized, wherever the activations lie meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from qcompile.compiler import activation_store
from qcompile.compiler.block_walker import MEMORY, BlockWalker, Visit, layers_in_low_precision
from qcompile.compiler.blocks import cut
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import name_of
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.walk_checkpoint import remove_walk_checkpoints, walk_checkpoints
from qcompile.errors import DataError
from qcompile.runtime.device import Device, fetch
from tests.compiler.walks import QUANTIZED, ready, whole
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal
from tests.pretend_gpu import OnDevice, pretend_gpu
from tests.sweep.harness import PREPARE
from tests.sweep.random_graphs import graphs, samples

Outputs = list[dict[str, np.ndarray]]  # type: ignore[type-arg]

sweep = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

DEEP = (
    head()
    + """g (float[N,8] x) => (float[N,8] y, float[N,8] middle) {
    h0 = MatMul (x, w0)  m0 = Add (h0, b0)  r0 = Relu (m0)  s0 = Add (r0, x)
    h1 = MatMul (s0, w1) m1 = Add (h1, b1)  r1 = Relu (m1)  s1 = Add (r1, s0)
    middle = Tanh (s1)
    h2 = MatMul (s1, w2) m2 = Add (h2, b2)  r2 = Relu (m2)  s2 = Add (r2, s1)
    h3 = MatMul (s2, w3) m3 = Add (h3, b3)  r3 = Relu (m3)  s3 = Add (r3, s2)
    h4 = MatMul (s3, w4) m4 = Add (h4, b4)  r4 = Relu (m4)  s4 = Add (r4, s3)
    h5 = MatMul (s4, w5) m5 = Add (h5, b5)  y = Relu (m5) }"""
)
WEIGHTS = {f"w{i}": normal(8, 8, seed=i) / 4 for i in range(6)} | {f"b{i}": normal(8, seed=i) for i in range(6)}


def deep() -> ir.Model:
    return model_of(DEEP, WEIGHTS)


def rows(count: int = 6) -> list[Sample]:
    return [{"x": normal(2 + i % 3, 8, seed=i)} for i in range(count)]


def walked(
    model: ir.Model,
    context: CompileContext,
    feeds: Sequence[Sample],
    memory: int = MEMORY,
    in_waves: bool = False,
    with_float: bool = True,
) -> tuple[Outputs, Outputs]:
    """The outputs of the model that the blocks compute: float, and quantized (from the last block's inputs)."""
    returned = {v.name for v in model.graph.outputs}
    exact: Outputs = [{} for _ in feeds]
    low: Outputs = [{} for _ in feeds]
    layers = layers_in_low_precision(context) if in_waves else ()
    for visit in BlockWalker(model, context, feeds, memory=memory, in_waves=layers, with_float=with_float):
        for i, found in enumerate(visit.float_outputs if with_float else ()):
            exact[i] |= {n: a for n, a in found.items() if n in returned}
        for i, found in enumerate(visit.run(visit.lowered(), visit.inputs)):
            low[i] |= {n: a for n, a in found.items() if n in returned}
    return exact, low


def assert_same(found: Outputs, expected: Outputs, tolerance: float = 0.0) -> None:
    for a, b in zip(found, expected, strict=True):
        for name in a:
            largest = float(np.abs(b[name]).max(initial=1e-3))
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance * largest)


@sweep
@given(proto=graphs())
def test_float_blocks_are_the_whole_model(proto: onnx.ModelProto) -> None:
    feeds = samples(proto)
    model, context = ready(proto, feeds, PREPARE)
    context.following = ()
    exact, low = walked(model, context, feeds)
    assert_same(exact, whole(model, feeds), 1e-6)
    assert_same(low, exact)


@sweep
@given(proto=graphs())
def test_quantized_blocks_are_the_whole_quantized_model(proto: onnx.ModelProto) -> None:
    feeds = samples(proto)
    model, context = ready(proto, feeds, QUANTIZED)
    _, low = walked(model, context, feeds)
    assert_same(low, whole(lowered_copy(model, context), feeds), 1e-6)


@pytest.mark.parametrize("with_float", [True, False])
def test_in_waves_what_layers_read_enters_the_block(with_float: bool) -> None:
    feeds = rows()
    model, context = ready(deep(), feeds, QUANTIZED)
    read = {node.name: name_of(node.inputs[0]) for node in model.graph if node.op_type == "MatMul"}  # type: ignore[arg-type]
    low: Outputs = [{} for _ in feeds]
    seen = []
    layers = layers_in_low_precision(context)
    for visit in BlockWalker(model, context, feeds, in_waves=layers, with_float=with_float):
        [wave] = visit.waves() or [[]]
        seen += [unit.node for unit in wave]
        assert {read[unit.node] for unit in wave} <= set(visit.block.inputs)
        assert with_float == all(n in visit._walk.store for n in visit.block.outputs)
        for i, found in enumerate(visit.run(visit.lowered(), visit.inputs)):
            low[i] |= {n: a for n, a in found.items() if n in ("y", "middle")}
    assert seen == list(context.plan.units)
    assert_same(low, whole(lowered_copy(model, context), feeds), 1e-6)


@sweep
@given(proto=graphs())
def test_waves_are_the_whole_quantized_model(proto: onnx.ModelProto) -> None:
    feeds = samples(proto)
    model, context = ready(proto, feeds, QUANTIZED)
    _, low = walked(model, context, feeds, in_waves=True, with_float=False)
    assert_same(low, whole(lowered_copy(model, context), feeds), 1e-6)


def test_spilled_activations_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(activation_store, "scratch_folder", lambda: str(tmp_path))
    feeds = rows()
    model, context = ready(deep(), feeds, QUANTIZED)
    held = walked(model, context, feeds)
    for memory in (0, 700):
        for a, b in zip(held, walked(model, context, feeds, memory), strict=True):
            assert_same(a, b)
    assert list(tmp_path.iterdir()) == [], "the files are gone"


@pytest.mark.parametrize(("on_device", "memory"), [(1 << 20, MEMORY), (2000, MEMORY), (800, 400)])
def test_activations_on_a_device_are_the_same(on_device: int, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some on the device, some in memory, the others in files; whatever is read lies on the device."""
    feeds = rows()
    model, context = ready(deep(), feeds, QUANTIZED)
    held = walked(model, context, feeds)
    context.device = Device.CUDA
    with pretend_gpu(monkeypatch, free=on_device):
        found = walked(model, context, feeds, memory)
        assert all(isinstance(a, OnDevice) for outputs in found for arrays in outputs for a in arrays.values())
        fetched = [[{n: fetch(a) for n, a in arrays.items()} for arrays in outputs] for outputs in found]
    for a, b in zip(held, fetched, strict=True):
        assert_same(a, b)


def test_files_go_away_when_a_walk_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(activation_store, "scratch_folder", lambda: str(tmp_path))
    model, context = ready(deep(), rows(), QUANTIZED)
    for _ in BlockWalker(model, context, rows(), memory=0):
        assert len(list(tmp_path.iterdir())) == 1
        break
    assert list(tmp_path.iterdir()) == []

    def fail() -> None:
        for _ in BlockWalker(model, context, rows(), memory=0):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert list(tmp_path.iterdir()) == []


def test_activations_that_nobody_reads_any_more_are_dropped() -> None:
    feeds = rows()
    model, context = ready(deep(), feeds, QUANTIZED)
    for visit in BlockWalker(model, context, feeds):
        held = set(visit._walk.store._held)
        assert held <= {
            f"{prefix}{n}" for n in (*visit.block.inputs, *visit.block.outputs) for prefix in ("", "quantized ")
        }


def test_edits_of_a_block_reach_the_blocks_behind_it() -> None:
    feeds = rows()
    model, context = ready(deep(), feeds, QUANTIZED)
    bias = model.graph.initializers["b0"]
    for i, visit in enumerate(BlockWalker(model, context, feeds)):
        if i == 0:
            bias.const_value = ir.tensor(bias.const_value.numpy() + 3, name="b0")  # type: ignore[union-attr]
            before = list(visit.float_outputs)
        if i == 1:
            entering = list(visit.inputs)
            assert_same(list(visit.float_inputs), before)
    assert [sorted(e) for e in entering] == [["s2"]] * len(feeds)
    assert_same(entering, inner_values(model, context, feeds, "s2"))


def inner_values(model: ir.Model, context: CompileContext, feeds: Sequence[Sample], name: str) -> Outputs:
    copy = lowered_copy(model, context)
    copy.graph.outputs.append(next(v for n in copy.graph for v in n.outputs if v.name == name))
    return [{name: found[name]} for found in whole(copy, feeds)]


def test_a_sequence_of_layers_has_several_blocks_with_ends_where_one_value_is_alive() -> None:
    model, context = ready(deep(), rows(), PREPARE)
    first, second = cut(model, context.target)
    assert (first.inputs, first.outputs) == (("x",), ("middle", "s2"))
    assert (second.inputs, second.outputs) == (("s2",), ("y",))


class Named:
    """A name from elsewhere than the class itself: passes of this file are not registered."""

    name: ClassVar[str] = "shift"


class Shift(Named, Pass):
    """A method that moves the bias of a block's first layer by the mean of what enters the block."""

    phase: ClassVar[Phase] = Phase.QUANTIZE
    seen: ClassVar[list[int]] = []
    dies: ClassVar[int] = -1

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for visit in BlockWalker(model, context, rows(), method=self):
            bias = model.graph.initializers["b0" if visit.index == 0 else "b3"]
            edits = visit.once(lambda: {"bias": self.moved(visit, bias)})  # noqa: B023
            bias.const_value = ir.tensor(edits["bias"], name=str(bias.name))
        return True

    def moved(self, visit: Visit, bias: ir.Value) -> np.ndarray:  # type: ignore[type-arg]
        if visit.index == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(visit.index)
        assert bias.const_value is not None
        shift = np.mean([a.mean() for feed in visit.inputs for a in feed.values()])
        return bias.const_value.numpy() + np.float32(shift)


KILLED = """
import sys
from pathlib import Path
from tests.compiler.test_block_walker import shifted
shifted(Path(sys.argv[1]), dies=1)
"""


def shifted(checkpoint: Path | None, *, dies: int = -1, resume: bool = False) -> tuple[bytes, list[int]]:
    """The model after the method, and the blocks it computed."""
    model, context = ready(deep(), rows(), QUANTIZED)
    context.checkpoint, context.resume = checkpoint, resume
    Shift.dies, Shift.seen = dies, []
    Shift().run(model, context)
    return ir.to_proto(lowered_copy(model, context)).SerializeToString(), Shift.seen


def test_a_killed_walk_goes_on_to_the_same_result(tmp_path: Path) -> None:
    checkpoint = tmp_path / "out.onnx.checkpoint"
    done = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(walk_checkpoints(checkpoint)) == 1
    uninterrupted = shifted(None)
    assert uninterrupted[1] == [0, 1]
    assert shifted(checkpoint, resume=True) == (uninterrupted[0], [1]), "block 0 was done before"
    assert shifted(checkpoint) == uninterrupted, "without resume all is done again"
    remove_walk_checkpoints(checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    shifted(checkpoint)
    [folder] = walk_checkpoints(checkpoint)
    (folder / "1.npz").write_bytes((folder / "1.npz").read_bytes()[:50])
    with pytest.raises(DataError, match="the checkpoint is damaged"):
        shifted(checkpoint, resume=True)
