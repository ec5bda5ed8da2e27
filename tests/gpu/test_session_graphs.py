"""Sessions that replay CUDA graphs on a GPU: the answers of the CPU, for mixed shapes, kinds of arrays and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.runtime.device_memory import used_and_total
from qcompile.runtime.session import Session
from tests.gpu.machine import why_not_on_gpu
from tests.runtime import shaped_models as models

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not_on_gpu()), reason=why_not_on_gpu())]

UNEQUAL_PARTS = (
    models.HEADER + models.TOKENS + "(float[batch, length, 4] y) {" + models.MASK + "p = Mul (x, column) "
    "sizes = Constant <value_ints = [1, 3]> () a, b = Split <axis = 2> (p, sizes) y = Concat <axis = 2> (b, a) }"
)
"""Split and Concat of unequal parts read their pointers from a buffer that is copied from the host."""

MODELS = {
    "rows": models.ROWS,
    "masked mean": models.MASKED_MEAN,
    "token by token": models.TOKEN_BY_TOKEN,
    "unequal parts": UNEQUAL_PARTS,
    "mean of all": models.PLAIN_MEAN,
}
SHAPES = [(4, 8), (5, 7), (4, 8), (1, 19), (5, 8), (4, 7), (9, 33), (4, 8)]


def opened(text: str, folder: Path, **options: Any) -> tuple[Session, Session]:
    path = folder / "model.onnx"
    path.write_bytes(models.model(text))
    return Session(path, ["cuda"], **options), Session(path, ["cpu"])


def check(session: Session, right: Session, text: str, shape: tuple[int, int], seed: int, kind: str) -> None:
    feed: dict[str, Any] = models.feed(text, *shape, seed=seed)
    expected = right(feed)["y"]
    if kind == "torch":
        import torch

        feed = {name: torch.from_numpy(array).cuda() for name, array in feed.items()}
    answer = session(feed)["y"]
    found = answer if kind == "numpy" else answer.cpu().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def replays(session: Session) -> int:
    return sum(getattr(bucket, "replays", 0) for bucket in session.description.state.buckets)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("name", MODELS)
def test_replays_give_the_answers_of_the_cpu(name: str, kind: str, tmp_path: Path) -> None:
    text = MODELS[name]
    session, right = opened(text, tmp_path, cuda_graphs=True)
    for seed in range(80):
        check(session, right, text, SHAPES[seed % len(SHAPES)], seed, kind)
    assert "any more" not in session.describe(), session.describe()
    assert replays(session) >= 40, session.describe()


def test_answers_outlive_later_replays(tmp_path: Path) -> None:
    import torch

    session, right = opened(models.ROWS, tmp_path, cuda_graphs=({"batch": 4},))
    feeds = [models.feed(models.ROWS, 4, seed=seed) for seed in range(20)]
    kept = [session({"x": torch.from_numpy(feed["x"]).cuda()})["y"] for feed in feeds]
    for feed, answer in zip(feeds, kept, strict=True):
        np.testing.assert_allclose(answer.cpu().numpy(), right(feed)["y"], rtol=1e-4)


def test_threads_and_memory(tmp_path: Path) -> None:
    text = models.MASKED_MEAN
    session, right = opened(text, tmp_path, cuda_graphs=True)

    def work(thread: int, runs: int) -> None:
        for seed in range(runs):
            check(session, right, text, SHAPES[(seed + thread) % len(SHAPES)], seed, "numpy")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4), [60] * 4))
        before = used_and_total(0)
        list(pool.map(work, range(4), [200] * 4))
        after = used_and_total(0)
    assert before is not None
    assert after is not None
    assert after[0] - before[0] <= 32 << 20, "captures of threads that came late apart, nothing grows"
    assert "any more" not in session.describe(), session.describe()
