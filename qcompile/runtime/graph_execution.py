"""Runs as CUDA graphs, by buckets of shapes.

    a feed's bucket      its sizes rounded up (`buckets`), where padding was shown to do no harm (`padding`)
    seen 3 times         captured; before that, and for feeds without a bucket, the model runs without a graph
    the run after        without a graph and with it, on inputs that the graph has not seen; the answers have to agree
    from then on         copied in, replayed, copied out and cut

A fault of a graph is not the caller's: the model then runs without graphs, and the session says why.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qcompile.runtime import arrays
from qcompile.runtime.arrays import NO_ADAPTER, Array
from qcompile.runtime.buckets import Buckets, FreeDimensions, Shape, Sizes, text
from qcompile.runtime.cuda_graphs import Captured
from qcompile.runtime.description import State
from qcompile.runtime.padding import Verdict, close, judge
from qcompile.runtime.providers import reason
from qcompile.runtime.settings import Settings

if TYPE_CHECKING:
    from qcompile.runtime.execution import Execution

_SEEN = 3
_MOST_GRAPHS = 32
"""Captures of one session, each thread's counted: ONNX Runtime drops none before the session ends."""
_MOST_SEEN = 10_000
"""Shapes that are counted; where more turn up, few of them return."""
_MOST_BYTES = 1 << 30
"""For inputs and outputs of all buckets; scratch memory lies in the arena, where all runs share it."""

Key = tuple[tuple[str, int], ...]


class NoGraphs:
    """The session runs without graphs, though they were asked for."""

    def __init__(self, plain: Execution, why: str) -> None:
        self._plain, self._why = plain, why

    def run(self, feed: Mapping[str, Array], adapter: Mapping[str, Array] = NO_ADAPTER) -> dict[str, Array]:
        return self._plain.run(feed, adapter)

    def state(self) -> State:
        return replace(self._plain.state(), buckets=(f"no CUDA graphs: {self._why}",))


@dataclass(frozen=True)
class Replayed:
    """What there is to say of a captured bucket.

    Attributes:
        replays: how often its graph gave an answer.
        bytes: of its inputs and outputs.
    """

    sizes: Sizes
    replays: int
    bytes: int

    def __str__(self) -> str:
        return f"CUDA graph of {text(self.sizes)}: {self.replays} replays, {self.bytes / 1e6:.1f} MB"


class GraphExecution:
    """Runs through graphs where there are some. One run at a time: the graphs of a session share one stream."""

    def __init__(self, session: Any, plain: Execution, settings: Settings, memory: str = "cuda") -> None:
        self._session, self._plain = session, plain
        self._memory, self._device = memory, settings.device
        self._dimensions = FreeDimensions.of({i.name: i.shape for i in session.get_inputs()})
        given = settings.cuda_graphs if isinstance(settings.cuda_graphs, tuple) else None
        self._buckets = Buckets(self._dimensions, given)
        self._patience = 1 if given else _SEEN
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._seen: Counter[Key] = Counter()
        self._verdicts: dict[str, Verdict] = {}
        self._slots: dict[Key, Captured] = {}
        self._replays: Counter[Key] = Counter()
        self._refused: dict[Key, str] = {}
        self._graphs = 0
        self._off = ""

    def run(self, feed: Mapping[str, Array], adapter: Mapping[str, Array] = NO_ADAPTER) -> dict[str, Array]:
        with self._lock:
            if self._off or adapter:  # a graph has the matrices that it was captured with
                return self._plain.run(feed, adapter)
            try:
                answer = self._by_graph(feed)
            except Exception as error:
                answer = self._plain.run(feed)  # what the feed is to blame for is raised here
                self._give_up(reason(error))
            return self._plain.run(feed) if answer is None else answer

    def state(self) -> State:
        with self._lock:
            lines: list[Any] = [Replayed(dict(k), self._replays[k], c.bytes) for k, c in self._slots.items()]
            if self._off:
                lines = [f"no CUDA graphs any more: {self._off}"]
            lines += [f"no CUDA graph of {text(dict(key))}: {why}" for key, why in self._refused.items()]
            for dimension, verdict in self._verdicts.items():
                may = verdict.outputs is not None
                lines.append(f"{dimension} is padded" if may else f"{dimension} is not padded: {verdict.why}")
            if not lines:
                lines = ["CUDA graphs: none captured yet"]
            return replace(self._plain.state(), buckets=tuple(lines))

    def _by_graph(self, feed: Mapping[str, Array]) -> dict[str, Array] | None:
        """The answer, None where the model is to run without a graph."""
        if feed.keys() != self._dimensions.ranks.keys() or any(map(arrays.is_ort, feed.values())):
            return None  # an input that has a default, or OrtValues, which cannot be sliced
        shapes = {name: arrays.shape_of(value) for name, value in feed.items()}
        sizes = self._dimensions.sizes(shapes)
        bucket = self._bucket(feed, sizes) if sizes is not None else None
        if sizes is None or bucket is None:
            return None
        key = tuple(bucket.items())
        slot = self._slots.get(key) or self._new_slot(key, self._dimensions.resized(shapes, bucket), feed)
        return self._answer(slot, key, feed, sizes) if slot else None

    def _bucket(self, feed: Mapping[str, Array], sizes: Sizes) -> dict[str, int] | None:
        """The bucket of a feed that was seen often enough; None otherwise."""
        for_sure = {d for d, verdict in self._verdicts.items() if verdict.outputs is not None}
        open_yet = {d for d in self._dimensions.candidates if d not in self._verdicts and sizes[d] > 1}
        bucket = self._buckets.of(sizes, for_sure | open_yet)
        if bucket is not None and tuple(bucket.items()) in self._refused:
            bucket = self._buckets.of(sizes, ())
        if bucket is None:
            return None
        key = tuple(bucket.items())
        if key not in self._slots:
            if len(self._seen) == _MOST_SEEN:
                self._seen.clear()
            self._seen[key] += 1
            if self._seen[key] < self._patience or key in self._refused:
                return None
        for dimension in [d for d in open_yet if bucket[d] != sizes[d]]:
            on_the_host = {name: arrays.fetched(value) for name, value in feed.items()}
            verdict = judge(self._plain.run, on_the_host, self._dimensions, dimension)
            self._verdicts[dimension] = verdict
            if verdict.outputs is None:
                return None
        return bucket

    def _new_slot(self, key: Key, shapes: Mapping[str, Shape], feed: Mapping[str, Array]) -> Captured | None:
        captured = Captured(self._session, len(self._slots), shapes, self._memory, self._device)
        captured.write(feed)
        try:
            captured.warm_up()
        except Exception as error:
            self._refused[key] = reason(error)
            return None
        taken = sum(slot.bytes for slot in self._slots.values())
        if taken + captured.bytes > _MOST_BYTES:
            self._refused[key] = f"inputs and outputs of all would take more than {_MOST_BYTES >> 20} MiB"
            return None
        self._slots[key] = captured
        return captured

    def _answer(self, captured: Captured, key: Key, feed: Mapping[str, Array], sizes: Sizes) -> dict[str, Array] | None:
        trusted: dict[Key, bool] = self._of_thread.__dict__.setdefault("trusted", {})
        if key not in trusted and self._graphs == _MOST_GRAPHS:
            return None
        cuts = self._cuts(sizes)
        captured.write(feed)
        if trusted.get(key):
            captured.replay()
            self._replays[key] += 1
            return captured.read(feed, cuts)
        captured.run_plainly()
        answer = captured.read(feed, cuts)
        if key not in trusted:
            self._graphs += 1
            trusted[key] = False
            captured.replay()
        else:
            right = captured.answers()
            captured.erase()
            captured.replay()
            wrong = [name for name, found in captured.answers().items() if not close(found, right[name])]
            if wrong:
                self._give_up(f"a replay gave another '{wrong[0]}' than a run")
            trusted[key] = True
        return answer

    def _give_up(self, why: str) -> None:
        self._off = why
        self._slots.clear()

    def _cuts(self, sizes: Sizes) -> list[tuple[str, int, int]]:
        judged = [(sizes[d], verdict.outputs or ()) for d, verdict in self._verdicts.items()]
        return [(name, axis, size) for size, outputs in judged for name, axis in outputs]
