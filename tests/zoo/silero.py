"""Silero VAD (MIT): voice activity, convolutions and an LSTM.

`SileroSequence` takes a whole recording. `SileroStep` takes one frame and its state, and keeps all of its weights
inside the two branches of an If.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from tests.zoo.cache import python_package
from tests.zoo.model import Array, Run, Sample, ZooModel
from tests.zoo.speech import FRAME, RATE, noisy_speech

_CONTEXT = 64


class SileroSequence(ZooModel):
    name = "silero-vad"
    title = "Silero VAD"
    metric_name = "area under the ROC curve"
    allowed_drop = 0.01
    allowed_size = 0.8  # the LSTM, two fifths of the file, stays float
    least_units = 4
    calibration_count = 12

    recordings = 12

    def path(self) -> Path:
        return _models() / "silero_vad_16k_sequence.onnx"

    def calibration(self, count: int) -> list[Sample]:
        return [self._sample(noisy_speech(10_000 + i, 10)[0]) for i in range(count)]

    def metric(self, run: Run) -> float:
        recordings = _test_recordings(self.recordings)
        scores = [run(self._sample(samples))["speech_probs"].ravel() for samples, _ in recordings]
        return area_under_curve(np.concatenate(scores), np.concatenate([labels for _, labels in recordings]))

    @property
    def data(self) -> str:
        return f"{self.recordings} recordings of 20 s: telephone prompts in silence, with noise"

    def timing_sample(self) -> Sample:
        return self._sample(_test_recordings(self.recordings)[0][0])

    def _sample(self, samples: Array) -> Sample:
        state = np.zeros((1, 1, 128), np.float32)
        return {"input": frames(samples), "h": state, "c": state}


class SileroStep(ZooModel):
    name = "silero-vad-step"
    title = "Silero VAD, one frame"
    metric_name = "area under the ROC curve"
    allowed_drop = 0.01
    allowed_size = 1.01
    least_units = 0  # one frame is so little work that conversions may cost more than int8 saves
    calibration_count = 64

    recordings = 4

    def path(self) -> Path:
        return _models() / "silero_vad_op18_ifless.onnx"

    def calibration(self, count: int) -> list[Sample]:
        """Frames spread over a few recordings, each with the state the float model had reached."""
        from tests.zoo.model import runner

        run, recordings = runner(self.path()), 4
        chosen: list[Sample] = []
        for seed in range(recordings):
            samples = list(self._steps(run, noisy_speech(10_000 + seed, 10 + count // 100)[0]))
            share = (count + seed) // recordings
            chosen += [samples[i] for i in np.linspace(0, len(samples) - 1, share).astype(int)]
        return chosen

    def metric(self, run: Run) -> float:
        recordings = _test_recordings(self.recordings)
        scores = []

        def noted(sample: Mapping[str, Array]) -> Mapping[str, Array]:
            outputs = run(sample)
            scores.append(float(outputs["output"][0, 0]))
            return outputs

        for samples, _ in recordings:
            for _ in self._steps(noted, samples):
                pass
        return area_under_curve(np.array(scores), np.concatenate([labels for _, labels in recordings]))

    @property
    def data(self) -> str:
        return f"{self.recordings} recordings of 20 s: telephone prompts in silence, with noise"

    def timing_sample(self) -> Sample:
        return self.calibration(8)[3]

    def _steps(self, run: Run, samples: Array) -> Iterator[Sample]:
        state, rate = np.zeros((2, 1, 128), np.float32), np.array(RATE, np.int64)
        for frame in frames(samples):
            sample = {"input": frame[None], "sr": rate, "state": state}
            state = run(sample)["stateN"]
            yield sample


def frames(samples: Array) -> Array:
    """Frames of 512 samples, each after the last 64 of the one before: float32 [frames, 576]."""
    whole = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float32)
    before = np.concatenate([np.zeros((1, _CONTEXT), np.float32), whole[:-1, -_CONTEXT:]])
    return np.concatenate([before, whole], axis=1)


def area_under_curve(scores: Array, labels: Array) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _models() -> Path:
    return python_package("silero-vad", "6.2.3") / "silero_vad" / "data"


@cache
def _test_recordings(count: int) -> list[tuple[Array, Array]]:
    return [noisy_speech(i, 20) for i in range(count)]
