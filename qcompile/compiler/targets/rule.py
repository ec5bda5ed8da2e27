"""What a target asks of single nodes, beyond the patterns of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        fault: what is wrong with a node that breaks it, as a user reads it.
        broken: whether a node breaks it.
        remedy: the way out.
        evidence: how we know.
    """

    fault: str
    broken: Callable[[ir.Node], bool]
    remedy: str
    evidence: str
