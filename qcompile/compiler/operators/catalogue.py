"""Every operator there is, for what must know them all: the documentation, the tests, the native library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from qcompile.compiler.operators.definition import FLOAT_TYPES, Operator
from qcompile.compiler.operators.linear import ACTIVATIONS
from qcompile.compiler.operators.linear24 import TYPES, linear24, linear24_e4m3, linear24_w8a8
from qcompile.compiler.operators.linear_e4m3 import linear_e4m3
from qcompile.compiler.operators.linear_outliers import linear_outliers
from qcompile.compiler.operators.linear_w4a16 import linear_w4a16
from qcompile.compiler.operators.linear_w8a8 import linear_w8a8
from qcompile.compiler.operators.norm_quant import NORMS, norm_quant
from qcompile.compiler.operators.quantize_rows import CODES, quantize_rows

_BOOL = (False, True)
_LINEAR: dict[str, Sequence[Any]] = {"bias": _BOOL, "activation": ACTIVATIONS, "dtype": tuple(FLOAT_TYPES)}


@dataclass(frozen=True)
class Family:
    """Operators made by one function.

    Attributes:
        choices: what each keyword of `make` can be.
    """

    make: Callable[..., Operator]
    choices: Mapping[str, Sequence[Any]]

    def variants(self) -> dict[str, dict[str, Any]]:
        """The keywords of each operator, by its name."""
        found: dict[str, dict[str, Any]] = {}
        for values in product(*self.choices.values()):
            keywords = dict(zip(self.choices, values, strict=True))
            found.setdefault(self.make(**keywords).name, keywords)
        return found


FAMILIES = (
    Family(quantize_rows, {"dtype": tuple(FLOAT_TYPES), "codes": tuple(CODES)}),
    Family(norm_quant, {"norm": NORMS, "add": _BOOL, "dtype": tuple(FLOAT_TYPES), "codes": tuple(CODES)}),
    Family(linear_w8a8, _LINEAR | {"requant": _BOOL}),
    Family(linear_e4m3, _LINEAR),
    Family(linear_outliers, _LINEAR),
    Family(linear_w4a16, {"zero": _BOOL, "bias": _BOOL, "dtype": tuple(FLOAT_TYPES)}),
    Family(linear24, _LINEAR | {"dtype": TYPES}),
    Family(linear24_w8a8, _LINEAR | {"requant": _BOOL}),
    Family(linear24_e4m3, _LINEAR),
)


def catalogue() -> dict[str, Operator]:
    """All operators by name."""
    return {name: family.make(**keywords) for family in FAMILIES for name, keywords in family.variants().items()}
