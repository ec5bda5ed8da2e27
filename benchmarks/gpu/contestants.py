"""One form at work: a model on a provider, fed in the way of the form.

A contestant is prepared for a point, which gives a call that starts one run. Several runs may be under way when the
last call returns; `wait_for` says how to wait for them. Floats are cast to what the model takes before the clock
starts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from benchmarks.gpu.forms import Form
from benchmarks.gpu.workloads import Workload
from tests.zoo.model import Array, Sample

Call = Callable[[], Any]
_OPTIONS = {
    "tensorrt": {"trt_fp16_enable": "1", "trt_int8_enable": "1"},
    "graph": {"enable_cuda_graph": "1"},
}


class Contestant(Protocol):
    """A form at work."""

    def prepare(self, number: int, feed: Sample) -> Call:
        """A call that starts one run on `feed`, the point `number`."""

    def answer(self, feed: Sample) -> Array:
        """The output that is compared."""


def contestant(form: Form, workload: Workload, file: Path | None) -> Contestant:
    """Load a form.

    Raises:
        Exception: of any kind, where this machine cannot run it.
    """
    if form.runner == "torch":
        return _Compiled(workload, form.provider)
    assert file is not None
    kinds: dict[str, Any] = {
        "session": _Ours,
        "captured session": _OursCaptured,
        "bound": _Bound,
        "graph": _Graph,
        "plain": _Plain,
    }
    made: Contestant = kinds[form.runner](file, form.provider, workload.output)
    return made


def wait_for(provider: str) -> Callable[[], None]:
    """What waits until the provider's device has done everything."""
    return (lambda: None) if provider == "cpu" else _torch().cuda.synchronize


class _Plain:
    """session.run with numpy arrays."""

    runner = ""

    def __init__(self, file: Path, provider: str, output: str) -> None:
        self.file, self.provider, self.output = file, provider, output
        self.session = self.opened()

    def prepare(self, number: int, feed: Sample) -> Call:
        arrays, session = self.cast(feed), self.reopened()
        return lambda: session.run(None, arrays)

    def answer(self, feed: Sample) -> Array:
        [found] = self.session.run([self.output], self.cast(feed))
        return np.asarray(found)

    def opened(self) -> Any:
        import onnxruntime

        from qcompile.runtime.providers import candidates, open_session, provider_options

        name = candidates([self.provider], None)[0].provider
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        chosen = provider_options(name, 0, None) | _OPTIONS.get(self.provider, {}) | _OPTIONS.get(self.runner, {})
        return open_session(self.file, options, name, chosen)

    def reopened(self) -> Any:
        """TensorRT's engines are for the shapes that they were built for."""
        if self.provider.startswith("tensorrt"):
            self.session = self.opened()
        return self.session

    def cast(self, feed: Sample) -> Sample:
        half = {i.name for i in self.session.get_inputs() if i.type == "tensor(float16)"}
        return {name: array.astype(np.float16) if name in half else array for name, array in feed.items()}


class _Bound(_Plain):
    """Inputs and outputs bound once, in the memory of the device."""

    def prepare(self, number: int, feed: Sample) -> Call:
        session, options = self.reopened(), self.run_options(number)
        binding = self.bound(session, feed)
        session.run_with_iobinding(binding, self.run_options(-1))
        for output, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(output.name, value)
        return lambda: session.run_with_iobinding(binding, options)

    def answer(self, feed: Sample) -> Array:
        binding = self.bound(self.session, feed)
        self.session.run_with_iobinding(binding, self.run_options(-1))
        names = [output.name for output in self.session.get_outputs()]
        return np.asarray(binding.get_outputs()[names.index(self.output)].numpy())

    def bound(self, session: Any, feed: Sample) -> Any:
        from onnxruntime import OrtValue

        device, binding = "cpu" if self.provider == "cpu" else "cuda", session.io_binding()
        for name, array in self.cast(feed).items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, device, 0)
        return binding

    def run_options(self, graph: int) -> Any:
        from onnxruntime import RunOptions

        options = RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1" if graph >= 0 else "0")
        if self.runner == "graph":
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


class _Graph(_Bound):
    """The same, replayed as a CUDA graph for each point."""

    runner = "graph"


class _Ours:
    """qcompile.Session on tensors that lie on the device, and on torch's stream."""

    graphs = False

    def __init__(self, file: Path, provider: str, output: str) -> None:
        self.file, self.provider, self.output = file, provider, output
        self.place, self.stream = "cpu" if provider == "cpu" else "cuda", None
        if self.place == "cuda":
            self.stream = _torch().cuda.Stream()
            _torch().cuda.set_stream(self.stream)
        self.engines = TemporaryDirectory()
        self.session = self.opened()

    def prepare(self, number: int, feed: Sample) -> Call:
        if self.provider.startswith("tensorrt"):  # engines are for the shapes that they were built for
            self.engines = TemporaryDirectory()
            self.session = self.opened()
        tensors, session = self.tensors(feed), self.session
        return lambda: session(tensors)

    def opened(self) -> Any:
        from qcompile.runtime.providers import candidates
        from qcompile.runtime.session import Session

        session = Session(
            self.file,
            [self.provider],
            stream=self.stream,
            engine_cache=self.engines.name,
            cuda_graphs=self.graphs,
        )
        if session.provider != candidates([self.provider], None)[0].provider:
            raise RuntimeError(session.why)
        return session

    def answer(self, feed: Sample) -> Array:
        found = self.session(self.tensors(feed))[self.output]
        return np.asarray(found if self.place == "cpu" else found.cpu())

    def tensors(self, feed: Sample) -> dict[str, Any]:
        if self.place == "cpu":
            return feed
        torch = _torch()
        return {name: torch.from_numpy(array).to(self.place) for name, array in feed.items()}


class _OursCaptured(_Ours):
    """The same, with shapes captured as CUDA graphs."""

    graphs = True


class _Compiled:
    """torch.compile of the same network in float16, which replays CUDA graphs; on a CPU the network as it is."""

    def __init__(self, workload: Workload, provider: str) -> None:
        torch = _torch()
        torch.set_grad_enabled(False)
        self.place = "cpu" if provider == "cpu" else "cuda"
        self.network = workload.network()
        if self.place == "cuda":
            torch.set_default_device("cuda")
            self.network = self.network.half().to("cuda")
        self.autocast = workload.kind == "decoder"  # its RMS norms square values that float16 cannot hold squared

    def prepare(self, number: int, feed: Sample) -> Call:
        torch = _torch()
        tensors = self.tensors(feed)
        if self.place == "cpu":
            return lambda: self.run(*tensors)
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)
        compiled = torch.compile(self.run, mode="reduce-overhead", dynamic=False)
        return lambda: compiled(*tensors)

    def answer(self, feed: Sample) -> Array:
        found = self.run(*self.tensors(feed))
        first = found[0] if isinstance(found, tuple) else found
        return np.asarray(first.float().cpu().numpy())

    def run(self, *tensors: Any) -> Any:
        torch = _torch()
        with torch.autocast("cuda", torch.float16, enabled=self.autocast and self.place == "cuda"):
            return self.network(*tensors)

    def tensors(self, feed: Sample) -> list[Any]:
        torch = _torch()
        on = [torch.from_numpy(array).to(self.place) for array in feed.values()]
        return [t.half() if self.place == "cuda" and t.is_floating_point() else t for t in on]


def _torch() -> Any:
    """PyTorch, whose functions on streams have no types."""
    import torch

    return torch
