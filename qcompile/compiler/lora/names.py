"""Which module of an adapter is which layer of the graph, where the two are called differently.

    "model.layers.{}.self_attn.q_proj=blk.{}.attn_q"

In front of the sign the whole path of a module, behind it the name of its layer, both as `qcompile lora list` shows
them; the operator at the end of a layer's name may be left out. Each {} stands for text without dots and slashes, in
the same order on both sides. The first that fits a module counts; modules that none fits keep their names.

Errors: UsageError for a text of another form; DataError for one that fits no module, and for modules that would get the
same name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from qcompile.compiler.lora.adapter import Adapter, Floats
from qcompile.errors import DataError, UsageError

NAMES_DIFFER = "where names differ, --names 'MODULE=LAYER' says which is which"
"""A hint."""

_WORD = "{}"


def renamed(adapters: Sequence[Adapter], names: Sequence[str]) -> list[Adapter]:
    """The adapters, with their modules called as the layers of the graph.

    Raises:
        UsageError: a name is of another form.
        DataError: a name fits no module of any adapter, or two modules of one adapter would be one layer.
    """
    pairs = [_pair(text) for text in names]
    _check_used(pairs, {module for adapter in adapters for module in _modules(adapter)})
    return [_renamed(adapter, _new_names(_modules(adapter), pairs)) for adapter in adapters]


def modules_of_layers(layers: Collection[str], names: Sequence[str]) -> dict[str, str]:
    """The way back: what the modules of these layers are called.

    Raises:
        UsageError: a name is of another form.
        DataError: a name fits none of the layers, or two of them would be one module.
    """
    pairs = [(layer, module) for module, layer in map(_pair, names)]
    _check_used(pairs, layers)
    return _new_names(layers, pairs)


def _pair(text: str) -> tuple[str, str]:
    module, _, layer = text.partition("=")
    if not module or not layer or module.count(_WORD) != layer.count(_WORD):
        raise UsageError(
            f"'{text}' is not of the form MODULE=LAYER with as many {_WORD} on both sides",
            where="names",
            hint="such as model.layers.{}.self_attn.q_proj=blk.{}.attn_q",
        )
    return module, layer


def _match(pattern: str, name: str) -> re.Match[str] | None:
    return re.fullmatch("([^./]+)".join(map(re.escape, pattern.split(_WORD))), name)


def _check_used(pairs: Iterable[tuple[str, str]], known: Collection[str]) -> None:
    for pattern, other in pairs:
        if not any(_match(pattern, name) for name in known):
            close = difflib.get_close_matches(pattern, sorted(known), n=1, cutoff=0)
            raise DataError(
                f"nothing is called '{pattern}', which '{other}' shall stand for",
                where="names",
                hint=f"there is '{close[0]}'" if close else "",
            )


def _new_names(known: Iterable[str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    found = {name: _new_name(name, pairs) for name in known}
    first: dict[str, str] = {}
    for name, new in found.items():
        if first.setdefault(new, name) != name:
            raise DataError(
                f"'{first[new]}' and '{name}' would both be '{new}'",
                where="names",
                hint=f"put {_WORD} where they differ, such as for the number of a block",
            )
    return found


def _new_name(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for pattern, new in pairs:
        if found := _match(pattern, name):
            for word in found.groups():
                new = new.replace(_WORD, word, 1)
            return new
    return name


def _modules(adapter: Adapter) -> list[str]:
    return [*adapter.updates, *(path.rpartition(".")[0] for path in adapter.trained)]


def _renamed(adapter: Adapter, new: Mapping[str, str]) -> Adapter:
    updates = {new[module]: replace(update, module=new[module]) for module, update in adapter.updates.items()}
    trained: dict[str, Floats] = {}
    for path, array in adapter.trained.items():
        module, dot, leaf = path.rpartition(".")
        trained[new[module] + dot + leaf] = array
    return replace(adapter, updates=updates, trained=trained)
