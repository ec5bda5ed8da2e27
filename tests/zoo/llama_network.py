"""A decoder of Llama's kind in plain torch, of any size, and as ONNX with its key-value cache.

Rotary positions with the halves of a pair far apart, keys and values shared by groups of heads, gated layers, RMS
norms, one table for embedding and head. A cache goes in as `past_key_values.N.key` and `.value`, and comes out as
`present.N.key` and `.value`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ROPE_BASE, _EPSILON, _CONTEXT = 100_000.0, 1e-5, 8192


@dataclass(frozen=True)
class Size:
    """Dimensions; `shared_heads` are those of keys and values."""

    layers: int
    width: int
    hidden: int
    vocabulary: int
    heads: int
    shared_heads: int
    head: int

    @property
    def caches(self) -> list[str]:
        """The end of each cache's name, in order."""
        return [f"{i}.{part}" for i in range(self.layers) for part in ("key", "value")]


def decoder(size: Size) -> Any:
    """The network; parameters are called as in GGUF files."""
    import torch
    from torch import nn
    from torch.nn.functional import linear, silu

    width, hidden, head = size.width, size.hidden, size.head
    heads_all, heads_shared = size.heads, size.shared_heads
    group = heads_all // heads_shared

    def plain(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias=False)

    def rotated(x: torch.Tensor, angle: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        (cosine, sine), (first, second) = angle, x.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

    class RMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + _EPSILON) * self.weight

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_norm, self.ffn_norm = RMSNorm(), RMSNorm()
            self.attn_q, self.attn_output = plain(width, width), plain(width, width)
            self.attn_k, self.attn_v = (plain(width, heads_shared * head) for _ in range(2))
            self.ffn_gate, self.ffn_up = plain(width, hidden), plain(width, hidden)
            self.ffn_down = plain(hidden, width)

        def forward(self, x: Any, angle: Any, mask: Any, old_key: Any, old_value: Any) -> Any:
            batch, length, _ = x.shape

            def heads(y: torch.Tensor, count: int) -> torch.Tensor:
                return y.view(batch, length, count, head).transpose(1, 2)

            y = self.attn_norm(x)
            query = rotated(heads(self.attn_q(y), heads_all), angle)
            key = torch.cat([old_key, rotated(heads(self.attn_k(y), heads_shared), angle)], 2)
            value = torch.cat([old_value, heads(self.attn_v(y), heads_shared)], 2)
            query = query.reshape(batch, heads_shared, group, length, head)
            scores = query @ key[:, :, None].transpose(-1, -2) * head**-0.5 + mask
            mixed = (scores.softmax(-1) @ value[:, :, None]).reshape(batch, heads_all, length, head)
            x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))
            y = self.ffn_norm(x)
            return x + self.ffn_down(silu(self.ffn_gate(y)) * self.ffn_up(y)), key, value

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embd, self.output_norm = nn.Embedding(size.vocabulary, width), RMSNorm()
            self.blk = nn.ModuleList(Layer() for _ in range(size.layers))
            turns = torch.outer(torch.arange(_CONTEXT), _ROPE_BASE ** (-torch.arange(0, head, 2) / head))
            self.turns: torch.Tensor
            self.register_buffer("turns", torch.stack([turns.cos(), turns.sin()]), persistent=False)

        def forward(self, tokens: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
            done, new = caches[0].shape[2], tokens.shape[1]
            positions = torch.arange(new) + done
            angle = self.turns[0, positions], self.turns[1, positions]
            mask = torch.where(torch.arange(done + new) <= positions[:, None], 0.0, -1e9)
            x, kept = self.token_embd(tokens), []
            for i, layer in enumerate(self.blk):
                x, key, value = layer(x, angle, mask, caches[2 * i], caches[2 * i + 1])
                kept += [key, value]
            return linear(self.output_norm(x), self.token_embd.weight), *kept

    return Decoder()


def export(network: Any, size: Size, path: str) -> None:
    """Write a network of `decoder` as ONNX."""
    import torch

    past, present = ([f"{word}.{c}" for c in size.caches] for word in ("past_key_values", "present"))
    free = {"input_ids": {0: "batch", 1: "length"}, "logits": {0: "batch", 1: "length"}}
    free |= {name: {0: "batch", 2: "past"} for name in past}
    free |= {name: {0: "batch", 2: "total"} for name in present}
    torch.onnx.export(
        network,
        (torch.ones(1, 7, dtype=torch.long), *(torch.zeros(1, size.shared_heads, 5, size.head) for _ in past)),
        path,
        input_names=["input_ids", *past],
        output_names=["logits", *present],
        dynamic_axes=free,
        opset_version=17,
        dynamo=False,
    )
