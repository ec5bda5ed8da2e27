"""The groups of an exported network against those that torch-pruning finds in the network itself.

Its groups are read from the graph of gradients, module by module; one of its members is a weight with an axis.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from qcompile.passes.prepare.fold_constants import FoldConstants
from qcompile.passes.transform.channels.search import channel_groups
from tests.passes.harness import NAMED, run

Members = tuple[int, frozenset[tuple[str, int]]]
"""How many channels a group has, and which axes of which weights."""


def branches() -> Any:
    """Convolutions with a residual sum, a depthwise one, branches side by side, norms and linear layers."""
    import torch
    from torch.nn.functional import gelu

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
            self.expand, self.project = torch.nn.Conv2d(8, 16, 1), torch.nn.Conv2d(16, 8, 1)
            self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.left, self.right, self.mix = (torch.nn.Conv2d(i, o, 1) for i, o in ((8, 6), (8, 10), (16, 12)))
            self.up = torch.nn.ConvTranspose2d(12, 9, 2, stride=2)
            self.hidden, self.out = torch.nn.Linear(9, 20), torch.nn.Linear(20, 5)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.norm(self.stem(x)))
            x = x + self.project(torch.relu(self.depthwise(self.expand(x))))
            x = self.mix(torch.cat([self.left(x), torch.sigmoid(self.right(x))], 1))
            x = torch.flatten(torch.nn.functional.adaptive_avg_pool2d(self.up(x), 1), 1)
            return self.out(gelu(self.hidden(x)))

    return Network().eval()


def scaled_and_cut() -> Any:
    """Channels scaled by what they are on average, slices of them, cheap copies behind them, and a flattened image."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, leaky_relu

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.squeeze, self.excite = (
                torch.nn.Conv2d(3, 14, 3),
                torch.nn.Linear(14, 4),
                torch.nn.Linear(4, 14),
            )
            self.first, self.rest = torch.nn.Conv2d(5, 6, 1), torch.nn.Conv2d(9, 6, 1)
            self.cheap, self.mix = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6), torch.nn.Conv2d(10, 8, 1)
            self.hidden, self.out = torch.nn.Linear(8 * 9, 20), torch.nn.Linear(20, 5)

        def forward(self, x: Any) -> Any:
            x = leaky_relu(self.stem(x))
            mean = torch.flatten(adaptive_avg_pool2d(x, 1), 1)
            x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))[:, :, None, None]
            x = torch.relu(torch.maximum(self.first(x[:, :5]), self.rest(x[:, 5:])))
            x = torch.relu(self.mix(torch.cat([x, self.cheap(x)], 1)[:, :10]))
            return self.out(torch.relu(self.hidden(torch.flatten(torch.max_pool2d(x, 2), 1))))

    return Network().eval()


def found_by_torch_pruning(module: Any, example: Any, ignored: list[Any]) -> set[Members]:
    import torch_pruning

    names = {layer: name for name, layer in module.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
    found = set()
    for group in graph.get_all_groups(ignored_layers=ignored):
        members = set()
        for dependency, _ in group:
            layer, way = dependency.target.module, dependency.handler.__name__
            if names.get(layer):
                turned = "Transpose" in type(layer).__name__
                members.add((f"{names[layer]}.weight", int(("out" in way) == turned)))
        found.add((len(group[0].idxs), frozenset(members)))
    return found


def found_here(model: ir.Model) -> set[Members]:
    nodes = {str(n.name): n for n in model.graph}
    found = set()
    for group in channel_groups(model):
        members = [(nodes[part.node].inputs[part.index], part.axis) for part in group.parts]
        weights = {(str(v.name), axis) for v, axis in members if v is not None and str(v.name).endswith(".weight")}
        found.add((group.size, frozenset(weights)))
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("network", "count"), [(branches, 7), (scaled_and_cut, 5)])
def test_the_same_groups(network: Callable[[], Any], count: int, tmp_path: Path) -> None:
    import torch

    module, example = network(), torch.zeros(1, 3, 8, 8)
    torch.onnx.export(
        module,
        (example,),
        str(tmp_path / "model.onnx"),
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    expected = found_by_torch_pruning(module, example, [module.out])
    assert len(expected) == count
    model = ir.load(tmp_path / "model.onnx")
    run(model, *NAMED, FoldConstants())
    assert found_here(model) == expected
