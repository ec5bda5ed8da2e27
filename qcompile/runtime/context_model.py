"""A context model: an ONNX file that holds engines in the place of the nodes they were built from.

It opens in the time that loading an engine takes, on the GPU and with the versions it was built for alone. ONNX Runtime
writes one when a session is opened with the options of this page; engines for free dimensions are built at once only if
their ranges are given.

Sources: onnxruntime/core/providers/tensorrt/onnx_ctx_model_helper.cc (`trt_dump_ep_context_model`); for the plugin
onnxruntime_session_options_config_keys.h (`ep.context_*`) and tensorrt_rtx_provider_options.h (`nv_profile_*`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcompile.errors import UsageError
from qcompile.runtime import tensorrt_rtx


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of an input that an engine runs, and the one it is fastest for."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    greatest: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> ShapeRange:
        """`8x128` for one shape, `1x16:8x128:32x512` for a range.

        Raises:
            UsageError: it is neither.
        """
        try:
            shapes = [tuple(int(size) for size in shape.split("x")) for shape in text.split(":")]
            if len(shapes) not in (1, 3) or any(size < 1 for shape in shapes for size in shape):
                raise ValueError
            found = cls(*(shapes if len(shapes) == 3 else shapes * 3))
            if not all(a <= b <= c for a, b, c in zip(found.least, found.usual, found.greatest, strict=True)):
                raise ValueError
        except ValueError:
            raise UsageError(
                f"'{text}' is no shape", hint="8x128 is one, 1x16:8x128:32x512 a range: least, usual and greatest"
            ) from None
        return found

    def fits(self, shape: Sequence[int | None]) -> bool:
        """Whether a model's input of `shape`, None for a free dimension, takes all of them."""
        return len(shape) == len(self.usual) and all(
            size is None or size == least == greatest
            for size, least, greatest in zip(shape, self.least, self.greatest, strict=True)
        )


def profile_options(provider: str, shapes: Mapping[str, ShapeRange]) -> dict[str, str]:
    """Options that build engines for these shapes of the model's inputs."""
    if not shapes:
        return {}
    prefix = "nv" if provider == tensorrt_rtx.NAME else "trt"
    of = {"min": "least", "opt": "usual", "max": "greatest"}
    return {f"{prefix}_profile_{short}_shapes": _listed(shapes, name) for short, name in of.items()}


def context_options(provider: str, path: Path, embed: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Options that make a session write its context model to `path`: the session's and the provider's.

    Args:
        embed: engines go into the file; otherwise beside it.
    """
    mode = str(int(embed))
    if provider == tensorrt_rtx.NAME:
        session = {"ep.context_enable": "1", "ep.context_file_path": str(path), "ep.context_embed_mode": mode}
        return session, {}
    return {}, {
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(path),
        "trt_ep_context_embed_mode": mode,
        "trt_engine_cache_prefix": path.stem,
    }


def _listed(shapes: Mapping[str, ShapeRange], which: str) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, getattr(shape, which)))}" for name, shape in shapes.items())
