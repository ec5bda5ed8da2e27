"""The small decoder's twin in torch, and adapters that PEFT writes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from tests.passes.adapters import ATTENTION, path
from tests.passes.llama import HEAD, matrices


class _Layer(nn.Module):
    def __init__(self, weights: dict[str, torch.Tensor], i: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for letter in matrices():
            linear = nn.Linear(1, 1, bias=False)
            linear.weight = nn.Parameter(weights[path(letter, i) + ".weight"].T.contiguous())
            linear.out_features, linear.in_features = linear.weight.shape
            setattr(self.self_attn if letter in ATTENTION else self.mlp, f"{letter}_proj", linear)
        self.gammas = [weights[f"gamma{norm}{i}"] for norm in "af"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, m = self.self_attn, self.mlp
        n = _norm(x, self.gammas[0])
        q, k, v = (_heads(p(n)) for p in (a.q_proj, a.k_proj, a.v_proj))
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        h = x + a.o_proj(mixed.transpose(1, 2).flatten(2))
        n = _norm(h, self.gammas[1])
        return h + m.down_proj(nn.functional.silu(m.gate_proj(n)) * m.up_proj(n))


class Twin(nn.Module):
    """The decoder in torch, with the weights of `model`."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        weights = {
            name: torch.from_numpy(v.const_value.numpy().copy())
            for name, v in model.graph.initializers.items()
            if v.const_value is not None
        }
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(
            _Layer(weights, i) for i in range(sum(".q_proj." in name for name in weights))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.model.layers:
            x = layer(x)
        return x


def _norm(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * gamma


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def peft_adapter(folder: Path, model: ir.Model, x: np.ndarray[Any, Any], seed: int = 0, **options: Any) -> Any:
    """Write an adapter of random numbers with PEFT; what its model computes of `x`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
    adapted = get_peft_model(Twin(model), LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
        result = adapted(torch.from_numpy(x)).numpy()
    adapted.save_pretrained(folder)
    return result
