"""How a session is to use the machine it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import UsageError
from qcompile.runtime.engines import EngineCache, engine_cache
from qcompile.runtime.providers import BUILDERS, CPU, CUDA, TENSORRT, provider_options


@dataclass(frozen=True)
class Settings:
    """The options of a session, checked.

    Args:
        device: number of the GPU.
        threads: threads of one operator on the CPU, None for one per core.
        spin: whether threads keep their cores busy while they wait.
        engine_cache: folder of TensorRT's engines, None for the one in the user's cache.
        stream: handle of the CUDA stream to run on, None for streams of ONNX Runtime.
        memory_limit: bytes that the arena of the CUDA provider may take; TensorRT's engines have memory of their own.
        cuda_graphs: whether to replay CUDA graphs, or the buckets to capture, each a size for every free dimension.
    """

    device: int = 0
    threads: int | None = None
    spin: bool = True
    engine_cache: Path | None = None
    stream: int | None = None
    memory_limit: int | None = None
    cuda_graphs: bool | tuple[Mapping[str, int], ...] = False

    def __post_init__(self) -> None:
        if self.device < 0:
            raise UsageError(f"a GPU's number is 0 or more, not {self.device}")
        for name in ("threads", "memory_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")

    def session_options(self) -> Any:
        """A new `onnxruntime.SessionOptions`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong comes as an exception
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if not self.spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.cuda_graphs:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def lacks_memory(self, error: str) -> str:
        """What an error of ONNX Runtime says of the GPU's memory, in the user's words; empty when it says nothing."""
        if self.memory_limit is not None and "Available memory of" in error:
            return f"memory_limit={self.memory_limit} bytes are too few"
        if "CUDA failure 2" in error or "out of memory" in error:
            return f"GPU {self.device} is out of memory"
        return ""

    def engines(self, model: Path, provider: str) -> EngineCache | None:
        """Where the engines of `model` are kept, None for a provider that builds none."""
        return engine_cache(model, provider, self.device, self.engine_cache) if provider in BUILDERS else None

    def provider_options(self, provider: str, engines: EngineCache | None = None) -> dict[str, str]:
        """Options of `provider`, by ONNX Runtime's names.

        With a limit the arena grows by what is asked for, instead of by powers of two, which would reach the
        limit while half of the memory is unused.
        """
        options = provider_options(provider, self.device, engines)
        if provider != CPU and self.stream is not None:
            options["user_compute_stream"] = str(self.stream)
        if provider in (CUDA, TENSORRT) and self.memory_limit is not None:
            options["gpu_mem_limit"] = str(self.memory_limit)
            options["arena_extend_strategy"] = "kSameAsRequested"
        return options
