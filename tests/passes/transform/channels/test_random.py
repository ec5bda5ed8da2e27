"""Random graphs: removing dead channels changes no bit."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import PassError
from tests.passes.harness import Arrays, model_of
from tests.passes.transform.channels.dead import prepared, whole, without_dead_channels

HEAD = '<ir_version: 10, opset_import: ["": 20]>'


class Drawn:
    """A graph in the making: whole numbers, moved, joined and multiplied at random.

    Attributes:
        values: what there is so far, with how many channels.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.lines: list[str] = []
        self.weights: Arrays = {}
        self.values = {"x": 4}

    def pick(self) -> tuple[str, int]:
        name = str(self.random.choice(list(self.values)))
        return name, self.values[name]

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = array
        return name

    def whole(self, *shape: int) -> str:
        return self.constant(whole(*shape, seed=len(self.lines)))

    def make(self, channels: int, expression: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        if channels > 1:
            self.values[name] = channels
        return name

    def join(self, axis: int) -> None:
        value, channels = self.pick()
        match int(self.random.integers(4)):
            case 0:
                self.make(channels, f"Relu ({value})")
            case 1:
                other, more = self.pick()
                self.make(channels + more, f"Concat <axis = {axis}> ({value}, {other})")
            case 2:
                order = self.constant(self.random.permutation(channels))
                self.make(channels, f"Gather <axis = {axis}> ({value}, {order})")
            case _:
                start = int(self.random.integers(0, channels - 1))
                bounds = [self.constant(np.array([n])) for n in (start, 1000, axis)]
                self.make(channels - start, f"Slice ({value}, {', '.join(bounds)})")

    def linear(self, value: str, columns: int) -> str:
        return self.make(columns, f"MatMul ({value}, {self.whole(self.values[value], columns)})")

    def row(self) -> None:
        value, columns = self.pick()
        match int(self.random.integers(8)):
            case 0 | 1:
                self.linear(value, int(self.random.choice([2, 4, 6])))
            case 2:
                self.make(columns, f"Add ({value}, {self.linear(self.pick()[0], columns)})")
            case 3:
                cut = int(self.random.integers(1, columns))
                first, second = f"v{len(self.lines)}", f"w{len(self.lines)}"
                sizes = self.constant(np.array([cut, columns - cut]))
                self.lines.append(f"{first}, {second} = Split <axis = 2> ({value}, {sizes})")
                self.values |= {n: w for n, w in ((first, cut), (second, columns - cut)) if w > 1}
            case 4 if columns % 2 == 0:
                heads, rows = self.constant(np.array([0, 0, 2, -1])), self.constant(np.array([0, 0, columns]))
                split = self.make(1, f"Reshape ({value}, {heads})")
                self.make(columns, f"Reshape ({self.make(1, f'Relu ({split})')}, {rows})")
            case 5:
                self.make(columns, f"Mul ({value}, {self.whole(columns)})")
            case _:
                self.join(2)

    def conv(self, value: str, filters: int, groups: int = 1) -> str:
        weight = self.whole(filters, self.values[value] // groups, 1, 1)
        return self.make(filters, f"Conv <group = {groups}> ({value}, {weight}, {self.whole(filters)})")

    def image(self) -> None:
        value, filters = self.pick()
        match int(self.random.integers(9)):
            case 0 | 1:
                self.conv(value, int(self.random.choice([2, 4, 6])))
            case 2:
                self.conv(value, filters * int(self.random.integers(1, 3)), groups=filters)
            case 3 if filters % 2 == 0:
                self.conv(value, filters, groups=2)
            case 4:
                self.make(filters, f"Add ({value}, {self.conv(self.pick()[0], filters)})")
            case 5:
                mean = self.make(1, f"GlobalMaxPool ({value})")
                self.make(filters, f"Mul ({value}, {mean})")
            case 6 if filters % 2 == 0:
                weight = self.whole(filters, 1, 1, 1)
                self.make(2, f"ConvTranspose <group = 2> ({value}, {weight})")
            case 7 if filters % 2 == 0:
                shapes = [self.constant(np.array(s)) for s in ((0, 2, -1, 2, 2), (0, filters, 2, 2))]
                apart = self.make(1, f"Reshape ({value}, {shapes[0]})")
                turned = self.make(1, f"Transpose <perm = [0, 2, 1, 3, 4]> ({apart})")
                self.make(filters, f"Reshape ({turned}, {shapes[1]})")
            case _:
                self.join(1)


def check(graph: Drawn, head: str, x: tuple[int, ...]) -> None:
    model = prepared(model_of(f"{HEAD} g {head} {{ {' '.join(graph.lines)} }}", graph.weights))
    with suppress(PassError):  # a slice of several groups would be empty
        without_dead_channels(model, {"x": whole(*x)})


SEEDS = {"seed": st.integers(0, 2**31), "steps": st.integers(2, 10)}


@settings(max_examples=15, deadline=None)
@given(**SEEDS)
def test_dead_columns_change_no_bit(seed: int, steps: int) -> None:
    graph = Drawn(np.random.default_rng(seed))
    graph.linear("x", 6)
    for _ in range(steps):
        graph.row()
    last = graph.linear(list(graph.values)[-1], 3)
    check(graph, f"(float[2,3,4] x) => (float[2,3,3] {last})", (2, 3, 4))


@settings(max_examples=15, deadline=None)
@given(**SEEDS)
def test_dead_filters_change_no_bit(seed: int, steps: int) -> None:
    graph = Drawn(np.random.default_rng(seed))
    graph.conv("x", 6)
    for _ in range(steps):
        graph.image()
    last = graph.conv(list(graph.values)[-1], 3)
    check(graph, f"(float[2,4,2,2] x) => (float[2,3,2,2] {last})", (2, 4, 2, 2))
