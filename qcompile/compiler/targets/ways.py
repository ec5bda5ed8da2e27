"""The ways by which artifacts of a target run: providers, what each cannot take, and the options that it needs.

An artifact carries what it needs in its manifest, `provider_options`: {provider: {option: value}}. A provider that is
not in there cannot run it, and the session goes on to the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Option:
    """A provider option, set to `value` where a graph needs it; `why` says what happens otherwise."""

    name: str
    needed: Callable[[ir.Model], bool]
    why: str
    value: str = "1"


@dataclass(frozen=True)
class Way:
    """One provider.

    Attributes:
        provider: ONNX Runtime's name.
        evidence: how we know what it takes.
        obstacle: why it cannot run a graph, empty when it can.
    """

    provider: str
    evidence: str
    obstacle: Callable[[ir.Model], str] = lambda _: ""
    options: tuple[Option, ...] = ()

    def needs(self, model: ir.Model) -> dict[str, str]:
        """The options for `model`."""
        return {option.name: option.value for option in self.options if option.needed(model)}
