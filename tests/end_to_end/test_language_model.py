"""Evaluation and calibration of a real decoder from plain text."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompile
from tests.zoo.model import runner
from tests.zoo.smollm2 import SmolLM2, tokenizer
from tests.zoo.text import news_articles

pytestmark = pytest.mark.models


def test_perplexity_is_that_of_the_zoo(tmp_path: Path) -> None:
    model, text = SmolLM2(), "\n".join(news_articles()[-40:])
    model.length, model.windows = 96, 2
    expected = model.perplexity(runner(model.path()), text)
    (tmp_path / "news.txt").write_text(text, encoding="utf-8")
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    given = qcompile.Text(tmp_path / "news.txt", tmp_path / "tokenizer.json", model.length, model.windows)
    found = qcompile.evaluate(model.path(), given, step=48)  # half of each window from the cache
    assert found.tokens == 2 * 95
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
