"""Random graphs: removing dead channels changes no bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from qcompile.errors import PassError
from tests.passes.harness import Arrays, model_of
from tests.passes.transform.channels.dead import prepared, whole, without_dead_channels

HEAD = '<ir_version: 10, opset_import: ["": 20]>'


class Drawn:
    """A graph in the making: rows of whole numbers, moved, joined and multiplied at random."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.lines: list[str] = []
        self.weights: Arrays = {}
        self.values = {"x": 4}

    def pick(self) -> str:
        return str(self.random.choice(list(self.values)))

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = array
        return name

    def make(self, width: int, expression: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        self.values[name] = width
        return name

    def linear(self, value: str, width: int) -> str:
        weight = self.constant(whole(self.values[value], width, seed=len(self.lines)))
        return self.make(width, f"MatMul ({value}, {weight})")

    def step(self) -> None:
        value = self.pick()
        width = self.values[value]
        match int(self.random.integers(9)):
            case 0 | 1:
                self.linear(value, int(self.random.choice([2, 4, 6])))
            case 2:
                self.make(width, f"Relu ({value})")
            case 3:
                other = self.linear(self.pick(), width)
                self.make(width, f"Add ({value}, {other})")
            case 4:
                other = self.pick()
                self.make(width + self.values[other], f"Concat <axis = -1> ({value}, {other})")
            case 5:
                cut = int(self.random.integers(1, width))
                first, second = f"v{len(self.lines)}", f"w{len(self.lines)}"
                sizes = self.constant(np.array([cut, width - cut]))
                self.lines.append(f"{first}, {second} = Split <axis = 2> ({value}, {sizes})")
                self.values |= {n: w for n, w in ((first, cut), (second, width - cut)) if w > 1}
            case 6:
                start = int(self.random.integers(0, width - 1))
                bounds = [self.constant(np.array([n])) for n in (start, 1000, -1)]
                self.make(width - start, f"Slice ({value}, {', '.join(bounds)})")
                if width - start == 1:
                    self.values.popitem()
            case 7:
                order = self.constant(self.random.permutation(width))
                self.make(width, f"Gather <axis = 2> ({value}, {order})")
            case 8 if width % 2 == 0:
                heads, rows = self.constant(np.array([0, 0, 2, -1])), self.constant(np.array([0, 0, width]))
                split = self.make(width, f"Reshape ({value}, {heads})")
                turned = self.make(width, f"Relu ({split})")
                del self.values[split], self.values[turned]
                self.make(width, f"Reshape ({turned}, {rows})")
            case _:
                row = self.constant(whole(width, seed=len(self.lines)))
                self.make(width, f"Mul ({value}, {row})")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(2, 10))
def test_dead_channels_change_no_bit(seed: int, steps: int) -> None:
    graph = Drawn(np.random.default_rng(seed))
    graph.linear("x", 6)
    for _ in range(steps):
        graph.step()
    last = graph.linear(list(graph.values)[-1], 3)
    text = f"{HEAD} g (float[2,3,4] x) => (float[2,3,3] {last}) {{ {' '.join(graph.lines)} }}"
    model = prepared(model_of(text, graph.weights))
    try:
        without_dead_channels(model, {"x": whole(2, 3, 4)})
    except PassError:  # a slice of several groups would be empty
        reject()
