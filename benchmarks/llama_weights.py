"""The weights of the zoo's decoder under the names of transformers, out of its ONNX file and back into it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.zoo.model import Array
from tests.zoo.smollm2 import tokenizer

_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
    "dtype": "float32",
}
_TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|im_end|>", "eos_token": "<|im_end|>"}


def export(model: Path, folder: Path) -> None:
    """Write `folder` as transformers reads a model."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file(weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER), encoding="utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))


def weights(model: Path) -> dict[str, Array]:
    """The weights of a decoder whose layers are floats and have their names, under those of transformers."""
    proto = onnx.load(model)
    stored, found = _initializers(proto), {}
    for name, initializer in _names(proto).items():
        array = numpy_helper.to_array(stored[initializer])
        found[name] = np.ascontiguousarray(array.T if name.endswith("_proj.weight") else array)
    return found


def with_weights(model: Path, file: Path, out: Path) -> None:
    """`model` with other weights, from a `file` .npz under the names of transformers."""
    proto = onnx.load(model)
    names, stored = _names(proto), _initializers(proto)
    with np.load(file) as arrays:
        for name in set(arrays.files) & set(names):
            array: Array = arrays[name].T if name.endswith("_proj.weight") else arrays[name]
            tensor = stored[names[name]]
            assert list(tensor.dims) == list(array.shape)
            tensor.raw_data = np.ascontiguousarray(array, np.float32).tobytes()
    onnx.save(proto, out)


def _initializers(proto: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def _names(proto: Any) -> dict[str, str]:
    """transformers' name of each weight -> the initializer; linear layers are transposed there."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for initializer in _initializers(proto):
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", initializer)
        if found:
            names[f"model.layers.{found[1]}.{_PARTS[found[2]]}.weight"] = initializer
    for node in proto.graph.node:
        found = re.fullmatch(r"/blk\.(\d+)/(\w+)/MatMul", node.name)
        if found:
            names[f"model.layers.{found[1]}.{_PARTS[found[2]]}.weight"] = node.input[1]
    return names
