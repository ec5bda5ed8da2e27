"""What the layers of an artifact are held against: a float model, with its large weights beside it.

The compiler has the model as it was before it was quantized, after all float-equivalent rewrites: there every
layer of the artifact has its counterpart, and channels that were scaled are scaled in both. Without it (an
artifact that somebody else made) the float model itself serves, as far as the names agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.compiler.description import describe
from qcompile.compiler.graph import name_of
from qcompile.runtime.taps import without_weights

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reference:
    """A float model.

    Attributes:
        model: its graph; the large weights of the main graph are inputs of it.
        weights: these weights by name, not copied.
    """

    model: onnx.ModelProto
    weights: Mapping[str, Array]

    @classmethod
    def of_file(cls, path: Path) -> Reference:
        model = onnx.load(path, load_external_data=False)
        return cls(model, without_weights(model, path.parent))

    @classmethod
    def of_state(cls, model: ir.Model) -> Reference:
        """Of a model under compilation; it is not changed."""
        proto, values = describe(model)
        return cls(proto, {name_of(v): v.const_value.numpy() for v in values if v.const_value is not None})
