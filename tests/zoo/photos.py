"""Real photographs: 20 labelled ImageNet pictures (foolbox), and unlabelled ones to calibrate with.

QCOMPILE_BENCH_DATA may name a folder with `imagenet-500.zip` (pictures called NNNN.jpg after their class); benchmarks
then measure on those.
"""

from __future__ import annotations

import io
import os
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.zoo.cache import python_package
from tests.zoo.model import stream

_UNLABELLED = ("astronaut", "chelsea", "coffee", "color", "motorcycle_left", "rocket", "retina", "ihc")


@cache
def labelled_photos() -> list[tuple[Image.Image, int]]:
    """20 pictures with their ImageNet class."""
    folder = python_package("foolbox", "3.3.4") / "foolbox" / "data"
    files = sorted(folder.glob("imagenet_*.jpg"))
    return [(Image.open(f).convert("RGB"), int(f.stem.split("_")[2])) for f in files]


@cache
def benchmark_photos() -> list[tuple[Image.Image, int]]:
    """The pictures of QCOMPILE_BENCH_DATA, in a fixed random order; empty without it."""
    folder = os.environ.get("QCOMPILE_BENCH_DATA")
    if not folder:
        return []
    with zipfile.ZipFile(Path(folder) / "imagenet-500.zip") as z:
        pictures = [(Image.open(io.BytesIO(z.read(n))).convert("RGB"), int(n[:4])) for n in sorted(z.namelist())]
    return [pictures[i] for i in stream(0).permutation(len(pictures))]


def photo_crops(count: int) -> list[Image.Image]:
    """`count` random crops, half of them mirrored, of the photographs in scikit-image."""
    folder = python_package("scikit-image", "0.26.0") / "skimage" / "data"
    photos = [Image.open(next(folder.glob(f"{name}.*"))).convert("RGB") for name in _UNLABELLED]
    crops = []
    for i in range(count):
        rng, photo = stream(1, i), photos[i % len(photos)]
        side = int(min(photo.size) * rng.uniform(0.5, 1.0))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
        crop = photo.crop((left, top, left + side, top + side))
        crops.append(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop)
    return crops


def normalized(image: Image.Image, side: int = 224, padding: int = 32) -> np.ndarray:
    """EfficientNet-Lite's own preprocessing: centre crop, bicubic, (x - 127) / 128; float32 [1, 3, side, side]."""
    width, height = image.size
    size = int(side / (side + padding) * min(width, height))
    left, top = (width - size) // 2, (height - size) // 2
    crop = image.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.BICUBIC)
    return ((np.asarray(crop, np.float32) - 127) / 128).transpose(2, 0, 1)[None]
