"""Running a model: the best provider there is, and arrays in and out without copies where possible.

    session = Session("model.int8-static.onnx")
    outputs = session({"input_ids": ids, "attention_mask": mask})

numpy arrays in, numpy arrays out. Torch tensors (or any arrays with DLPack) in, the same kind out,
on the device of the inputs: a CUDA tensor is bound where it lies and its results stay there.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import DataError, ModelError, TargetError, UsageError
from qcompile.runtime import arrays, model_header
from qcompile.runtime.ops import kernels
from qcompile.runtime.providers import CPU, Candidate, candidates, open_session, provider_options, reason

_NUMPY = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16", "tensor(bool)": "bool", "tensor(string)": "object",
} | {f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)}  # fmt: skip


@dataclass(frozen=True)
class Port:
    """One input or output: its name, element type (numpy's name) and shape (None for a free dimension)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


class Session:
    """A model, ready to run.

    Args:
        path: an ONNX model.
        providers: providers to try, best first ("cpu", "cuda", "tensorrt" or ONNX Runtime's names);
            left out, the best one for what the model was compiled for.
        device: number of the GPU.
        threads: threads of one operator on the CPU; left out, one per core.
        engine_cache: folder for TensorRT's engines, which otherwise are built anew in each process.
        spin: whether threads keep their cores busy while they wait, for the least latency; False where sessions take
            turns, since it disturbs the others.

    Attributes:
        provider: the execution provider that runs the model.
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
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError("no such file", where=str(path))
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        self.manifest = model_header.manifest(self.path)
        target = str(self.manifest["target"]) if self.manifest and "target" in self.manifest else None
        cache = Path(engine_cache) if engine_cache is not None else None
        self._device = device
        self._session, chosen, lost = self._open(candidates(providers, target), threads, spin, cache)
        self.provider = chosen.provider
        self.why = "; ".join([*lost, chosen.why])
        self.kernels = kernels.choose(self.path, chosen.provider)
        self.inputs = [_port(i) for i in self._session.get_inputs()]
        self.outputs = [_port(o) for o in self._session.get_outputs()]
        self._by_name = {i.name: i for i in self.inputs}
        self._optional = {_port(i).name: _port(i) for i in self._session.get_overridable_initializers()}

    def _open(
        self, tried: Sequence[Candidate], threads: int | None, spin: bool, cache: Path | None
    ) -> tuple[Any, Candidate, list[str]]:
        lost: list[str] = []
        for candidate in tried:
            options = provider_options(candidate.provider, self._device, cache)
            try:
                session = open_session(self.path, _session_options(threads, spin), candidate.provider, options)
            except TargetError as error:
                lost.append(error.what)
                continue
            if lost:
                warnings.warn(f"{'; '.join(lost)}; running on {candidate.provider}", stacklevel=4)
            return session, candidate, lost
        raise TargetError("no provider can run the model: " + "; ".join(lost), where=str(self.path))

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: input name -> array (numpy, torch, or anything with DLPack), of the exact element type.

        Returns:
            Output name -> array of the same kind and on the same device as the inputs.

        Raises:
            DataError: a name, an element type or a shape is wrong.
        """
        self._check_names(inputs)
        first = next(iter(inputs.values()), None)
        on_device = next((v for v in inputs.values() if arrays.on_device(v)), None)
        try:
            if on_device is not None:
                return self._run_bound(inputs, type(on_device))
            feed = {name: self._as_numpy(name, value) for name, value in inputs.items()}
            results = self._session.run(None, feed)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"ONNX Runtime could not run the model: {reason(error)}", where=str(self.path)) from None
        return {port.name: arrays.from_numpy(result, first) for port, result in zip(self.outputs, results, strict=True)}

    def describe(self) -> str:
        """Provider, reason, ports and recipe, in a few lines."""
        lines = [f"{self.path.name} on {self.provider} ({self.why})"]
        lines += [f"  in   {port}" for port in self.inputs]
        lines += [f"  out  {port}" for port in self.outputs]
        if self.kernels.operators:
            lines.append(f"  {self.kernels}")
        if self.manifest:
            recipe = self.manifest.get("recipe", {})
            lines.append(f"  compiled by recipe {recipe.get('name', '?')} for {self.manifest.get('target', '?')}")
        return "\n".join(lines)

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        known = self._by_name | self._optional
        for name in inputs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise DataError(
                    f"the model has no input '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""),
                    hint="its inputs are " + "; ".join(str(i) for i in self.inputs),
                )
        missing = [str(port) for port in self.inputs if port.name not in inputs]
        if missing:
            raise DataError("inputs are missing: " + "; ".join(missing))

    def _as_numpy(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        array = arrays.to_numpy(value)
        self._check_array(name, str(array.dtype), array.shape)
        return array

    def _check_array(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        port = self._by_name.get(name) or self._optional[name]
        if port.dtype != "object" and dtype != port.dtype:
            raise DataError(f"input '{name}' is {dtype}, the model wants {port.dtype}", hint=f"cast it to {port.dtype}")
        fits = len(shape) == len(port.shape) and all(
            want is None or want == got for want, got in zip(port.shape, shape, strict=True)
        )
        if not fits:
            raise DataError(f"input '{name}' has shape {list(shape)}, the model wants {port}")

    def _run_bound(self, inputs: Mapping[str, Any], kind: type) -> dict[str, Any]:
        """Bind arrays that lie on a device; the outputs stay there."""
        if self.provider == CPU:
            raise DataError(
                f"an input lies on a GPU, but the model runs on the CPU ({self.why})",
                hint="move the inputs with .cpu(), or open the session with providers=['cuda']",
            )
        binding = self._session.io_binding()
        bound = {}
        for name, value in inputs.items():
            self._check_array(name, arrays.dtype_name(value), value.shape)
            bound[name] = arrays.to_ort(value)
            binding.bind_ortvalue_input(name, bound[name])
        for port in self.outputs:
            binding.bind_output(port.name, "cuda", self._device)
        arrays.wait_for(kind)
        self._session.run_with_iobinding(binding)
        return {
            port.name: arrays.from_ort(value, kind)
            for port, value in zip(self.outputs, binding.get_outputs(), strict=True)
        }


def _session_options(threads: int | None, spin: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _port(given: Any) -> Port:
    shape = tuple(d if isinstance(d, int) else None for d in given.shape or ())
    return Port(given.name, _NUMPY.get(given.type, given.type), shape)
