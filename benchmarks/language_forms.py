"""Every form in which a decoder is measured, and how its file is made.

- `float`: the model as it is.
- `ORT`: MatMulNBits by onnxruntime.quantization, round to nearest, every MatMul with its head, int8 arithmetic.
- llm-compressor (GPTQ, AWQ) and HQQ in an environment of their own, on the same windows of the same text, as their
  examples have it: the head stays float. Their weights come back into the float graph, so all are judged alike.
- qcompile's recipes under their own names, with their defaults, and with other blocks.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers import LIMIT, Peer
from benchmarks.record import peak_mib
from benchmarks.variants import runtime_version, sources

if TYPE_CHECKING:
    from qcompile.compiler.recipe import Recipe

FLOAT = "float"
WINDOW, WINDOWS = 256, 64
_NEED_SAMPLES = ("int4-gptq", "int4-awq", "int4-accurate", "llm-int8", "kv-int8")
_BLOCK_128, _SYMMETRIC = "place-weights.block-size=128", "place-weights.symmetric=true"
_RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "int8-weight-only": ("int8-weight-only", ()),
    "llm-int8": ("llm-int8", ()),
    "kv-int8": ("kv-int8", ()),
    "int4-rtn": ("int4-rtn", ()),
    "int4-rtn, symmetric": ("int4-rtn", (_SYMMETRIC,)),
    "int4-rtn, block 128": ("int4-rtn", (_BLOCK_128,)),
    "int4-gptq": ("int4-gptq", ()),
    "int4-gptq, symmetric": ("int4-gptq", (_SYMMETRIC,)),
    "int4-gptq, block 128": ("int4-gptq", (_BLOCK_128,)),
    "int4-awq": ("int4-awq", ()),
    "int4-awq, block 128": ("int4-awq", (_BLOCK_128,)),
    "int4-accurate": ("int4-accurate", ()),
    "int4-accurate, block 128": ("int4-accurate", (_BLOCK_128,)),
    "nf4": ("nf4", ()),
    "nvfp4": ("nvfp4", ()),
    "fp8-weight-only": ("fp8-weight-only", ()),
}
_ORT = {
    "ORT int4, block 32": (4, 32, True),
    "ORT int4, block 32, asymmetric": (4, 32, False),
    "ORT int4, block 128": (4, 128, True),
    "ORT int4, block 128, asymmetric": (4, 128, False),
    "ORT int8, block 32": (8, 32, True),
}
PEER = Peer(
    "llm_compressor",
    ("llmcompressor==0.14.0.1", "torch==2.13.0", "einops", "termcolor"),
    {
        "HQQ, block 32": "hqq-32",
        "HQQ, block 128": "hqq-128",
        "llm-compressor GPTQ, block 32": "gptq-32",
        "llm-compressor GPTQ, block 128": "gptq-128",
        "llm-compressor AWQ, block 32": "awq-32",
        "llm-compressor AWQ, block 128": "awq-128",
    },
    alone=("hqq==0.2.8.post1",),
)


@dataclass(frozen=True)
class Form:
    """One form of a decoder.

    Attributes:
        kind: what stands together in the tables, such as "float", "ORT", "peer" and "recipe".
        make: writes the file from the float file and the folder of calibration data: seconds and peak_mib, without
            imports where that matters.
        stamp: what decides the bytes of the file besides model and data, as text.
        bits: a weight of the layers, where the file holds floats in place of codes.
        timed: whether its speed says something.
    """

    name: str
    kind: str
    make: Callable[[Path, Path, Path], dict[str, float]]
    stamp: Callable[[], str]
    bits: float | None = None
    timed: bool = True


@cache
def forms() -> dict[str, Form]:
    """All of them, in the order of the tables."""
    from qcompile.frontends.builtin_recipes import recipe_names

    found = [float_form()]
    found += [_ort_form(name, *how) for name, how in _ORT.items()]
    found += [_quantized_by_peer(name, preset) for name, preset in PEER.presets.items()]
    known = recipe_names()
    found += [_recipe_form(name, *how) for name, how in _RECIPES.items() if how[0] in known]
    return {form.name: form for form in found}


def write_data(folder: Path, tokenizer: Any, text: str) -> Path:
    """What every form is calibrated with: the text, and its windows as token ids."""
    from qcompile.frontends.text import Text, Tokens

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    tokens = Tokens.of(Text(folder / "text.txt", folder / "tokenizer.json"), [])
    there = len(tokens.ids) // WINDOW
    np.save(folder / "windows.npy", tokens.cut(WINDOW, [i * there // WINDOWS * WINDOW for i in range(WINDOWS)]))
    return folder


def float_form() -> Form:
    """The model as it is."""
    return Form(FLOAT, "float", _linked, str)


def _linked(model: Path, data: Path, out: Path) -> dict[str, float]:
    out.symlink_to(model)
    return {"seconds": 0.0}


def _ort_form(name: str, bits: int, block: int, symmetric: bool) -> Form:
    def make(model: Path, data: Path, out: Path) -> dict[str, float]:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as ort

        start = time.perf_counter()
        config = ort.DefaultWeightOnlyQuantConfig(block, symmetric, accuracy_level=4, bits=bits)
        tool = ort.MatMulNBitsQuantizer(onnx.load(model), algo_config=config)
        tool.process()
        tool.model.save_model_to_file(str(out), False)
        return {"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}

    return Form(name, "ORT", make, lambda: f"{bits} {block} {symmetric} {runtime_version()} {inspect.getsource(make)}")


def _quantized_by_peer(name: str, preset: str) -> Form:
    method, block = preset.split("-")
    stored = {"hqq": 32, "gptq": 16, "awq": 20}[method]  # bits of a scale in half precision, and of a zero point
    return peer_form(name, preset, 4 + stored / int(block))


def peer_form(name: str, preset: str, bits: float | None = None) -> Form:
    """What llm-compressor's environment makes of a decoder's weights."""

    def make(model: Path, data: Path, out: Path) -> dict[str, float]:
        from benchmarks import llama_weights

        folder, weights = out.with_name("transformers"), out.with_name("weights.npz")
        llama_weights.export(model, folder)
        found = PEER.quantize(preset, folder, data / "windows.npy", weights)
        llama_weights.with_weights(model, weights, out)
        with np.load(weights) as arrays:
            return {"seconds": found, "peak_mib": float(arrays["peak_mib"])}

    script = PEER.script.read_text(encoding="utf-8")
    stamp = f"{PEER.requirements} {PEER.alone} {preset} {LIMIT} {script}"
    return Form(name, "peer", make, lambda: stamp, bits, timed=False)


def _recipe_form(name: str, recipe: str, overrides: tuple[str, ...]) -> Form:
    from qcompile.frontends.builtin_recipes import find_recipe

    samples = text if recipe in _NEED_SAMPLES else None
    return compiled_form(name, "recipe", lambda: find_recipe(recipe).with_overrides(overrides), samples)


def text(data: Path) -> Any:
    """Samples as users have them: windows, every other one with its first half in the cache."""
    import qcompile

    return qcompile.Text(data / "text.txt", data / "tokenizer.json", WINDOW, WINDOWS)


def compiled_form(
    name: str, kind: str, recipe: Callable[[], Recipe], samples: Callable[[Path], Any] | None = text
) -> Form:
    """What `recipe` makes of a decoder, calibrated with `samples` of the folder of data."""

    def make(model: Path, data: Path, out: Path) -> dict[str, float]:
        import qcompile

        given = samples(data) if samples is not None else None
        chosen = recipe()
        chosen.passes()  # imports
        start = time.perf_counter()
        qcompile.compile(model, chosen, calibration=given, output=out, overwrite=True, prove=False)
        return {"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}

    return Form(name, kind, make, lambda: _stamp(recipe(), inspect.getsource(samples) if samples else ""))


def _stamp(recipe: Recipe, samples: str) -> str:
    return hashlib.sha256(f"{recipe} {samples} {WINDOW} {WINDOWS} {sources()}".encode()).hexdigest()
