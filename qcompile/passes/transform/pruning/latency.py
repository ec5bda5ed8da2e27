"""How much time a pruned model saves on this machine, beside the model as it was, in turns.

saved = 1 - median over turns of t_pruned / t_first       a slow moment hits both of a turn alike
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import Sample
from qcompile.compiler.scratch import scratch_folder
from qcompile.runtime.benchmark import interleaved

_SECONDS = 4.0
"""Of one comparison."""


class Race:
    """Compares models with the first one.

    Args:
        folder: where the files lie as long as they run.
    """

    def __init__(self, model: ir.Model, sample: Sample, provider: str, folder: Path) -> None:
        self.sample, self.provider, self.folder = sample, provider, folder
        self.first = self._saved(model, "first")

    def saved(self, pruned: ir.Model) -> float:
        """The share of the time that `pruned` does not take.

        Raises:
            TargetError: the provider does not load on this machine.
        """
        files = {"first": self.first, "pruned": self._saved(pruned, "pruned")}
        times = interleaved(files, self.sample, self.provider, _SECONDS)
        return 1 - float(np.median(np.divide(times["pruned"].turns, times["first"].turns)))

    def _saved(self, model: ir.Model, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        ir.save(model, path, external_data=f"{name}.data")
        return path


@contextmanager
def race(model: ir.Model, sample: Sample, provider: str) -> Iterator[Race]:
    """A Race whose files are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="qcompile-", dir=scratch_folder()) as folder:
        yield Race(model, sample, provider, Path(folder))
