"""Running a model: the best provider there is, and arrays in and out without copies where possible.

    session = Session("model.int8-static.onnx")
    outputs = session({"input_ids": ids, "attention_mask": mask})

numpy arrays in, numpy arrays out. Torch tensors (or any arrays with DLPack) in, the same kind out,
on the device of the inputs: a CUDA tensor is bound where it lies and its results stay there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.errors import DataError, ModelError
from qcompile.runtime import arrays, model_header
from qcompile.runtime.adapters import Adapters
from qcompile.runtime.description import Description
from qcompile.runtime.device_memory import DeviceMemory, used_and_total
from qcompile.runtime.libraries import no_cudnn
from qcompile.runtime.opening import open_model
from qcompile.runtime.ops import kernels
from qcompile.runtime.ports import Port
from qcompile.runtime.providers import CPU, candidates, reason
from qcompile.runtime.settings import Settings
from qcompile.runtime.streams import handle_of


class Session:
    """A model, ready to run.

    Args:
        path: an ONNX model.
        providers: providers to try, best first ("cpu", "cuda", "tensorrt", "tensorrt-rtx" or ONNX Runtime's
            names);
            left out, the best one for what the model was compiled for.
        device: number of the GPU.
        threads: threads of one operator on the CPU; left out, one per core.
        engine_cache: folder for TensorRT's engines; left out, the one in the user's cache.
        spin: whether threads keep their cores busy while they wait, for the least latency; False where sessions take
            turns, since it disturbs the others.
        stream: CUDA stream to run on, of torch or as an integer handle; left out, ONNX Runtime has its own.
        memory_limit: bytes that the session's arena may take on the GPU, for weights and activations.
        cuda_graphs: whether to capture and replay CUDA graphs, on the CUDA provider: True for buckets of sizes as they
            turn up, or the only buckets to capture, each with a size for every free dimension of the inputs, such as
            {"batch": 8, "sequence": 128}. While a graph is captured, no other thread may use the GPU.
        adapters: LoRA adapters that runs may ask for: name -> .onnx_adapter file, for a model with inputs for them.

    Attributes:
        provider: the execution provider that runs the model.
        device: where it computes, "cpu" or "cuda" and its number.
        why: why this one, and why not a better one.
        inputs, outputs: the model's ports.
        kernels: how operators of domain `qcompile` run.
        manifest: how the model was compiled, None for a model that qcompile did not make.

    Raises:
        ModelError: the file cannot be opened.
        UsageError: a provider that does not exist.

    Warns:
        UserWarning: a provider did not load and the next one took its place.
    """

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[str] | None = None,
        *,
        device: int = 0,
        threads: int | None = None,
        engine_cache: str | Path | None = None,
        spin: bool = True,
        stream: Any = None,
        memory_limit: int | None = None,
        cuda_graphs: bool | Sequence[Mapping[str, int]] = False,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError("no such file", where=str(path))
        cache = Path(engine_cache) if engine_cache is not None else None
        graphs = cuda_graphs if isinstance(cuda_graphs, bool) else tuple(cuda_graphs)
        self._settings = settings = Settings(device, threads, spin, cache, handle_of(stream), memory_limit, graphs)
        self._stream = stream  # some libraries destroy a stream that nobody holds
        self.manifest = model_header.manifest(self.path)
        opened = open_model(self.path, candidates(providers, self.manifest), settings)
        self.provider, self.why, self._execution = opened.provider, opened.why, opened.execution
        self.device = ("cpu", 0) if opened.provider == CPU else ("cuda", device)
        self._taken, self._engines = opened.taken, opened.engines
        self.kernels = kernels.choose(self.path, opened.provider)
        self.inputs = [Port.of(i) for i in opened.session.get_inputs()]
        self.outputs = [Port.of(o) for o in opened.session.get_outputs()]
        overridable = [Port.of(i) for i in opened.session.get_overridable_initializers()]
        self._accepted = {port.name: port for port in [*self.inputs, *overridable]}
        self._adapters = Adapters(adapters or {}, {port.name: port for port in overridable}, self.device)

    def __call__(self, inputs: Mapping[str, Any], *, adapter: str | None = None) -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: input name -> array (numpy, torch, or anything with DLPack), of the exact element type.
            adapter: name of the LoRA adapter to run with; left out, none.

        Returns:
            Output name -> array of the same kind and on the same device as the inputs.

        Raises:
            DataError: a name, an element type or a shape is wrong.
            UsageError: the session has no such adapter.
        """
        self._check_names(inputs)
        for name, value in inputs.items():
            self._check_array(name, value)
        held = self._adapters.values(adapter)
        try:
            return self._execution.run(inputs, held)
        except DataError:
            raise
        except Exception as error:
            if missing := self._settings.lacks_memory(str(error)):
                raise DataError(
                    f"{missing} for this run", where=str(self.path), hint="run fewer rows at once"
                ) from None
            why = no_cudnn(str(error)) or reason(error)
            raise DataError(f"ONNX Runtime could not run the model: {why}", where=str(self.path)) from None

    @property
    def description(self) -> Description:
        """What runs, where, how and why, as data."""
        compiled = None
        if self.manifest:
            recipe = self.manifest.get("recipe", {})
            compiled = (str(recipe.get("name", "?")), str(self.manifest.get("target", "?")))
        return Description(
            self.path.name,
            self.provider,
            self.why,
            tuple(self.inputs),
            tuple(self.outputs),
            self.kernels,
            compiled,
            self._execution.state(),
            self._memory(),
            self._engines,
            self._adapters if len(self._adapters) else None,
        )

    def describe(self) -> str:
        """The description in a few lines."""
        return str(self.description)

    def _memory(self) -> DeviceMemory | None:
        device = self._settings.device
        found = used_and_total(device) if self.provider != CPU else None
        return DeviceMemory(device, *found, self._taken, self._settings.memory_limit) if found else None

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        for name in inputs:
            if name not in self._accepted:
                close = difflib.get_close_matches(name, self._accepted, n=1)
                raise DataError(
                    f"the model has no input '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""),
                    hint="its inputs are " + "; ".join(str(i) for i in self.inputs),
                )
        missing = [str(port) for port in self.inputs if port.name not in inputs]
        if missing:
            raise DataError("inputs are missing: " + "; ".join(missing))

    def _check_array(self, name: str, value: Any) -> None:
        port, dtype, shape = self._accepted[name], arrays.dtype_name(value), arrays.shape_of(value)
        if port.dtype != "object" and dtype != port.dtype:
            raise DataError(f"input '{name}' is {dtype}, the model wants {port.dtype}", hint=f"cast it to {port.dtype}")
        if not port.takes(shape):
            raise DataError(f"input '{name}' has shape {list(shape)}, the model wants {port}")
        if self.provider == CPU and arrays.on_device(value):
            raise DataError(
                f"an input lies on a GPU, but the model runs on the CPU ({self.why})",
                hint="move the inputs with .cpu(), or open the session with providers=['cuda']",
            )
