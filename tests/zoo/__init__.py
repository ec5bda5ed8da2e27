"""Real pretrained models and real labelled data, fetched from packages: nothing of them is in this repository."""

from __future__ import annotations

from tests.zoo.efficientnet_lite0 import EfficientNetLite0
from tests.zoo.minilm import MiniLM
from tests.zoo.model import ZooModel
from tests.zoo.ppocr import PPOCRDetection, PPOCRRecognition
from tests.zoo.silero import SileroSequence, SileroStep
from tests.zoo.smollm2 import SmolLM2, SmolLM2Permuted
from tests.zoo.whisper import WhisperDecoder, WhisperEncoder

MODELS: dict[str, type[ZooModel]] = {
    m.name: m for m in (EfficientNetLite0, MiniLM, PPOCRRecognition, PPOCRDetection, SileroSequence, SileroStep)
}
"""Small enough for every test."""

LARGE_MODELS: dict[str, type[ZooModel]] = {
    m.name: m for m in (WhisperEncoder, WhisperDecoder, SmolLM2, SmolLM2Permuted)
}
"""For benchmarks, and for tests that ask for one of them: their metrics take long."""

ALL_MODELS = MODELS | LARGE_MODELS
