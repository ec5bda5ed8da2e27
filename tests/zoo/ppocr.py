"""PP-OCRv4 (Apache-2.0, packaged by rapidocr-onnxruntime): text recognition (SVTR with CTC) and detection (DBNet)."""

from __future__ import annotations

import math
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from tests.zoo.cache import python_package
from tests.zoo.model import Array, Run, Sample, ZooModel
from tests.zoo.rendered_text import Box, text_lines, text_page

_TEST, _CALIBRATION = 1, 2


class PPOCRRecognition(ZooModel):
    name = "ppocrv4-rec"
    title = "PP-OCRv4 recognition"
    metric_name = "lines read without a fault (spaces aside)"
    allowed_drop = 0.02
    least_units = 30
    allowed_size = 0.36

    lines = 200

    def path(self) -> Path:
        return _models() / "ch_PP-OCRv4_rec_infer.onnx"

    def calibration(self, count: int) -> list[Sample]:
        return [{"x": _line_pixels(image)} for _, image in text_lines(count, _CALIBRATION)]

    def metric(self, run: Run) -> float:
        right = [self.read(run, image) == text.replace(" ", "") for text, image in _test_lines(self.lines)]
        return float(np.mean(right))

    @property
    def data(self) -> str:
        return f"{self.lines} rendered lines of news text in four families of fonts, blurred, noisy, tilted"

    def timing_sample(self) -> Sample:
        pixels = next(p for _, image in _test_lines(self.lines) if (p := _line_pixels(image)).shape[3] >= 320)
        return {"x": np.ascontiguousarray(pixels[..., :320])}

    def read(self, run: Run, image: Image.Image) -> str:
        """The text on a picture of one line, without spaces."""
        [scores] = run({"x": _line_pixels(image)}).values()
        best = (k for k, _ in groupby(scores[0].argmax(1).tolist()))
        return "".join(self._characters[k] for k in best if k).replace(" ", "")

    @cached_property
    def _characters(self) -> list[str]:
        import onnx

        [text] = [p.value for p in onnx.load(self.path()).metadata_props if p.key == "character"]
        return ["", *text.split("\n"), " "]


class PPOCRDetection(ZooModel):
    name = "ppocrv4-det"
    title = "PP-OCRv4 detection"
    metric_name = "harmonic mean of precision and recall at IoU 0.5"
    allowed_drop = 0.02
    least_units = 30
    allowed_size = 0.4
    calibration_count = 16

    pages = 10

    def path(self) -> Path:
        return _models() / "ch_PP-OCRv4_det_infer.onnx"

    def calibration(self, count: int) -> list[Sample]:
        return [{"x": _page_pixels(text_page(10_000 + i)[0])} for i in range(count)]

    def metric(self, run: Run) -> float:
        hits = found = there = 0
        for image, truth in _test_pages(self.pages):
            [probability] = run({"x": _page_pixels(image)}).values()
            boxes = text_boxes(probability[0, 0])
            hits += matches(boxes, truth)
            found, there = found + len(boxes), there + len(truth)
        return 2 * hits / (found + there)

    @property
    def data(self) -> str:
        return f"{self.pages} rendered pages of 736 x 960 pixels"

    def timing_sample(self) -> Sample:
        return {"x": _page_pixels(_test_pages(self.pages)[0][0])}


def text_boxes(probability: Array, threshold: float = 0.3, certain: float = 0.6, grow: float = 1.6) -> list[Box]:
    """Upright boxes around the text regions of a probability map [H, W], grown as DBNet's post-processing does."""
    import cv2

    contours, _ = cv2.findContours((probability > threshold).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        if min(w, h) < 3:
            continue
        inside = cv2.drawContours(np.zeros((h, w), np.uint8), [contour - (x, y)], -1, 1, -1)
        if probability[y : y + h, x : x + w][inside > 0].mean() < certain:
            continue
        margin = w * h * grow / (2 * (w + h))
        boxes.append((x - margin, y - margin, x + w + margin, y + h + margin))
    return boxes


def matches(found: list[Box], truth: list[Box], threshold: float = 0.5) -> int:
    """How many boxes of `truth` have a box of `found` with intersection over union of at least `threshold`."""
    free = set(range(len(truth)))
    hits = 0
    for box in found:
        best = max(free, key=lambda k: overlap(box, truth[k]), default=None)
        if best is not None and overlap(box, truth[best]) >= threshold:
            free.remove(best)
            hits += 1
    return hits


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _models() -> Path:
    return python_package("rapidocr-onnxruntime", "1.4.4") / "rapidocr_onnxruntime" / "models"


@cache
def _test_lines(count: int) -> list[tuple[str, Image.Image]]:
    return text_lines(count, _TEST)


@cache
def _test_pages(count: int) -> list[tuple[Image.Image, list[Box]]]:
    return [text_page(i) for i in range(count)]


def _line_pixels(image: Image.Image) -> Array:
    width = max(16, math.ceil(48 * image.width / image.height))
    blue_first = np.asarray(image.resize((width, 48), Image.Resampling.BILINEAR), np.float32)[:, :, ::-1]
    return np.ascontiguousarray((blue_first / 127.5 - 1).transpose(2, 0, 1)[None])


def _page_pixels(image: Image.Image) -> Array:
    blue_first = np.asarray(image, np.float32)[:, :, ::-1] / 255
    mean, deviation = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return np.ascontiguousarray(((blue_first - mean) / deviation).transpose(2, 0, 1)[None])
