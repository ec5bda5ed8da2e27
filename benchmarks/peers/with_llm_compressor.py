"""llm-compressor and HQQ on a Llama: with_llm_compressor.py MODEL TOKENS OUT PRESET

PRESET is gptq-BLOCK, awq-BLOCK or hqq-BLOCK, or wanda-2:4 or sparsegpt-2:4.

MODEL is a folder as transformers has it, TOKENS an .npy file of windows [n, length]. OUT gets the weights that the
quantized model computes with, in float32 and under transformers' names, and `peak_mib`. The head stays float, as in the
examples of both.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM


def quantizers(method: str, block: int) -> Any:
    """GPTQ symmetric with static groups, AWQ asymmetric: each as its documentation has it."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {"num_bits": 4, "type": "int", "symmetric": method == "gptq", "strategy": "group", "group_size": block}
    how: dict[str, Any] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    return GPTQModifier(**how) if method == "gptq" else [AWQModifier(duo_scaling="both"), QuantizationModifier(**how)]


def pruner(method: str, pattern: str) -> Any:
    """Wanda or SparseGPT, half of the weights by a pattern."""
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    made = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
    return made(sparsity=0.5, mask_structure=pattern, ignore=["lm_head"])


def compress(model: Any, tokens: str, recipe: Any) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot

    windows = np.load(tokens)
    rows = {"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
    )


def halfway(model: Any, block: int) -> None:
    """HQQ with groups along the inputs of a layer, as a kernel wants them."""
    from hqq.core.quantize import Quantizer

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            codes, grid = Quantizer.quantize(
                layer.weight.data, nbits=4, group_size=block, axis=1, compute_dtype=torch.float32, device="cpu"
            )
            layer.weight.data = Quantizer.dequantize(codes, grid).to(torch.float32).reshape(layer.weight.shape)


def effective(layer: Any) -> Any:
    """What the layer multiplies with."""
    if getattr(layer, "quantization_scheme", None) is None:
        return layer.weight
    from compressed_tensors.quantization import forward_quantize

    return forward_quantize(layer, layer.weight, "weight", layer.quantization_scheme.weights)


def main(folder: str, tokens: str, out: str, preset: str) -> None:
    method, how = preset.split("-")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = time.perf_counter()
    if method == "hqq":
        halfway(model, int(how))
    else:
        compress(model, tokens, pruner(method, how) if ":" in how else quantizers(method, int(how)))
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    layers = {n: m for n, m in model.named_modules() if n.startswith(("model.layers", "model.norm"))}
    with torch.no_grad():
        found: dict[str, Any] = {f"{n}.weight": effective(m).numpy() for n, m in layers.items() if hasattr(m, "weight")}
    with Path(out).open("wb") as file:
        np.savez(file, allow_pickle=False, peak_mib=peak, **found)
    print(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
