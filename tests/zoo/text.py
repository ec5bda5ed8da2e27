"""Real English text: the Lee corpora (gensim's test data) and labelled movie reviews (vaderSentiment)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.zoo.cache import made, python_package, unpack


@cache
def news_articles() -> list[str]:
    """299 news articles of the Lee background corpus."""
    text = (_lee() / "lee_background.cor").read_text(encoding="utf-8", errors="replace")
    return text.strip().split("\n")


@cache
def judged_articles() -> tuple[list[str], npt.NDArray[np.float64]]:
    """The 50 articles of the Lee corpus, and how similar people found each pair: [50, 50] in 0 to 1."""
    articles = (_lee() / "lee.cor").read_text(encoding="latin-1").strip().split("\n")
    half = np.loadtxt(_lee() / "similarities0-1.txt")
    return articles, np.maximum(half, half.T)


@cache
def movie_reviews() -> list[tuple[str, bool]]:
    """Sentences of movie reviews with the sign of their mean human rating, clear cases only."""
    archive = next(python_package("vaderSentiment", "3.3.2", source=True).rglob("hutto_ICWSM_2014.tar.gz"))
    folder = made("data/hutto_ICWSM_2014", lambda path: unpack(archive, path))
    [file] = folder.rglob("movieReviewSnippets_GroundTruth.txt")
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [(row[2], float(row[1]) > 0) for row in rows if abs(float(row[1])) > 0.5]


def _lee() -> Path:
    return python_package("gensim", "4.4.0") / "gensim" / "test" / "test_data"
