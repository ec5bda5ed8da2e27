"""Where the modules of an adapter lie in a graph, found by the names that exporters leave.

A module of an adapter has a path, model.layers.0.self_attn.q_proj. A layer of the graph has several: its node, its
weight, its result and the nodes it was made of are called after the module, and torch keeps the module's scopes beside
the node. Behind the path stand up to two words of the exporter (.../q_proj/MatMul_output_0). The two belong together
where one path ends with the other, since an export may begin below or above the module that was trained.

Errors: DataError naming the modules that no layer, or more than one, is called after.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from qcompile.compiler.graph import is_constant, nodes
from qcompile.compiler.lora.adapter import Adapter
from qcompile.compiler.lora.names import NAMES_DIFFER
from qcompile.compiler.provenance import channels_by, sources
from qcompile.errors import DataError

Path = tuple[str, ...]

_SCOPES = "pkg.torch.onnx.name_scopes"
_TAIL = 2
_SHOWN = 5
MERGE_EARLIER = "merge the adapter into the float model, and compile that again"
"""A hint."""

_SAME = {"self_attn": "attn"}
"""Words for one module: ONNX Runtime's builder of language models has its own."""


@dataclass(frozen=True, eq=False)
class Place:
    """A node with a constant weight: MatMul, Gemm, Conv, or the Gather of a table."""

    node: ir.Node

    @property
    def table(self) -> bool:
        return self.node.op_type == "Gather"

    @property
    def position(self) -> int:
        """Which input the weight is."""
        return 0 if self.table else 1

    @property
    def weight(self) -> ir.Value:
        value = self.node.inputs[self.position]
        assert value is not None
        return value

    @property
    def inputs_first(self) -> bool:
        """The weight is [K, N]."""
        transposed: int = self.node.attributes.get_int("transB", 0)
        return not (self.table or self.node.op_type == "Conv" or transposed)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight as frameworks hold it: [N, K], [N, C, h, w], or [V, D] of a table."""
        assert self.weight.shape is not None
        shape = self.weight.shape.numpy()
        return shape[::-1] if self.inputs_first else shape

    @cached_property
    def paths(self) -> frozenset[Path]:
        """What the node and its weight are called after."""
        node = self.node
        names = [node.name, *sources(node), self.weight.name, node.outputs[0].name]
        return frozenset(path for name in names if name for path in [parts(name)]) | scopes(node)

    def __str__(self) -> str:
        return f"'{self.node.name}' ({_dimensions(self.shape)})"


def places(model: ir.Model) -> list[Place]:
    """All of them, in graph order."""
    return [Place(node) for node in nodes(model) if _has_weight(node)]


def _has_weight(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gather", "Gemm", "MatMul"):
        return False
    position = 0 if node.op_type == "Gather" else 1
    weight = node.inputs[position]
    if weight is None or not is_constant(weight) or is_constant(node.inputs[1 - position]):
        return False
    attributes = node.attributes
    plain = (
        not (attributes.get_int("transA", 0) or attributes.get_int("axis", 0)) and attributes.get_float("alpha", 1) == 1
    )
    floating = weight.dtype is not None and weight.dtype.is_floating_point()
    ranks = (3, 4, 5) if node.op_type == "Conv" else (2,)
    return plain and floating and weight.shape is not None and len(weight.shape) in ranks


def parts(name: str) -> Path:
    """The words of a name."""
    return tuple(_SAME.get(word, word) for word in re.split(r"[/.]", name) if word)


def scopes(node: ir.Node) -> frozenset[Path]:
    """The modules that torch says the node belongs to, the innermost two."""
    try:
        found = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return frozenset()
    return frozenset(parts(name) for name in found[-2:] if isinstance(name, str) and name)


class Places:
    """The places of a model, by their paths."""

    def __init__(self, found: Sequence[Place]) -> None:
        self.found = found
        self._by_word: dict[tuple[str, bool], dict[Place, set[Path]]] = defaultdict(dict)
        for place in found:
            for path in place.paths:
                for end in range(max(1, len(path) - _TAIL), len(path) + 1):
                    self._by_word[path[end - 1], place.table].setdefault(place, set()).add(path[:end])

    def named(self, module: str, table: bool = False) -> list[Place]:
        """The places whose paths have most in common with that of `module`: one, unless names are missing or equal."""
        wanted = parts(module)
        ending = self._by_word[wanted[-1], table] if wanted else {}
        common = {place: max(in_common(wanted, path) for path in paths) for place, paths in ending.items()}
        most = max(common.values(), default=NOTHING)
        return [place for place, found in common.items() if found == most > NOTHING]

    def alone(self, module: str) -> list[Place]:
        """The layer and the table that are called after `module`, where no other is."""
        named = [self.named(module, table) for table in (False, True)]
        return [found[0] for found in named if len(found) == 1]

    def of(self, adapter: Adapter) -> dict[str, Place]:
        """The place of each module that the adapter updates.

        Raises:
            DataError: which modules have none or more than one, and which share one.
        """
        chosen: dict[str, Place] = {}
        faults: dict[str, str] = {}
        for module, update in adapter.updates.items():
            best = self.named(module, update.table)
            if len(best) == 1:
                chosen[module] = best[0]
            else:
                faults[module] = f"is the name of {' and '.join(map(str, best[:2]))}" if best else "not found"
        if faults:
            shown = listed([f"{module} ({fault})" for module, fault in faults.items()])
            raise DataError(
                f"{len(faults)} of {len(adapter.updates)} modules of adapter '{adapter.name}' have no layer of their "
                f"own in the model: {shown}",
                hint=self._closest(next(iter(faults))),
            )
        readers: dict[Place, str] = {}
        for module, place in chosen.items():
            if place in readers:
                raise DataError(
                    f"modules '{readers[place]}' and '{module}' of adapter '{adapter.name}' both fit layer {place}"
                )
            readers[place] = module
        return chosen

    def _closest(self, module: str) -> str:
        names = [str(place.node.name) for place in self.found]
        if not names:
            return "the model has no layers with constant float weights; is it quantized?"
        close = difflib.get_close_matches("/".join(parts(module)), names, n=1, cutoff=0.3) or names[:1]
        return f"the nearest of {len(names)} layers of the model is '{close[0]}'; {NAMES_DIFFER}"


def check_shapes(adapter: Adapter, chosen: Mapping[str, Place]) -> None:
    """Each update has the shape of the weight it is for.

    Raises:
        DataError: which have not.
    """
    faults = [
        f"{module}: B A is {_dimensions(update.shape)}, layer '{chosen[module].node.name}' is "
        f"{_dimensions(chosen[module].shape)}"
        for module, update in adapter.updates.items()
        if update.shape != chosen[module].shape
    ]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(adapter.updates)} modules of adapter '{adapter.name}' do not have the shape of "
            f"their layers: {listed(faults)}",
            hint="was it trained on another model, or on one of another size?",
        )


def check_channels(adapter: Adapter, found: Mapping[str, ir.Node]) -> None:
    """The constants of the nodes that `adapter` changes are still those that it was trained with.

    Args:
        found: module or tensor of the adapter -> node.

    Raises:
        DataError: which are not, and which pass scaled or reordered their channels.
    """
    faults = [f"{name} ({by})" for name, node in found.items() if (by := channels_by(node))]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(found)} layers that adapter '{adapter.name}' changes had channels scaled or moved "
            f"when the model was compiled: {listed(faults)}",
            hint=MERGE_EARLIER,
        )


def listed(texts: Sequence[str]) -> str:
    """The first few."""
    return "; ".join(texts[:_SHOWN]) + ("; ..." if len(texts) > _SHOWN else "")


NOTHING = (0, False)


def in_common(a: Path, b: Path) -> tuple[int, bool]:
    """The length of the shorter path where the longer one ends with it, else 0; and whether they are equal."""
    short = min(len(a), len(b))
    return (short, a == b) if a[-short:] == b[-short:] else NOTHING


def _dimensions(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
