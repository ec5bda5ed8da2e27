"""How fast models are: timed in turns, with what they do counted and held against what the device can do."""

from qcompile.runtime.benchmark.profile import node_times
from qcompile.runtime.benchmark.turns import Timing, interleaved, ratio

__all__ = ["Timing", "interleaved", "node_times", "ratio"]
