"""Pictures of text with exact ground truth: real words, open fonts, then the faults of scanners and cameras."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tests.zoo.cache import python_package
from tests.zoo.model import stream
from tests.zoo.text import news_articles

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

_FONTS = (
    ("font-lato", "0.1.0", ("Lato-Regular", "Lato-Bold", "Lato-Italic")),
    ("font-caladea", "0.0.2", ("Caladea-Regular", "Caladea-Bold", "Caladea-Italic")),
    ("font-source-sans-pro", "0.0.1", ("SourceSansPro-Regular", "SourceSansPro-Semibold")),
    ("font-source-serif-pro", "0.0.1", ("SourceSerifPro-Regular", "SourceSerifPro-Semibold")),
)


def text_lines(count: int, seed: int) -> list[tuple[str, Image.Image]]:
    """`count` single lines of 12 to 34 characters: (text, picture)."""
    lines = []
    for i in range(count):
        rng = stream(2, seed, i)
        text = _phrase(rng, 12, 34)
        font, margin = _font(rng, 18, 40), int(rng.integers(3, 9))
        paper, ink = _colours(rng)
        left, top, right, bottom = (round(x) for x in font.getbbox(text))
        image = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
        ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=ink)
        angle = rng.uniform(-1.2, 1.2)
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
        lines.append((text, _degraded(image, rng)))
    return lines


def text_page(seed: int, size: tuple[int, int] = (960, 736)) -> tuple[Image.Image, list[Box]]:
    """A page of about 14 lines: (picture, the box of each line)."""
    rng = stream(3, seed)
    width, height = size
    paper, _ = _colours(rng)
    image, boxes = Image.new("RGB", size, paper), []
    draw, y = ImageDraw.Draw(image), float(rng.integers(15, 40))
    while y < height - 60:
        font, text = _font(rng, 16, 38), _phrase(rng, 8, 40)
        left, top, right, bottom = font.getbbox(text)
        if right - left > width - 30:
            continue
        x = float(rng.integers(10, max(11, int(width - (right - left) - 10))))
        draw.text((x - left, y - top), text, font=font, fill=_colours(rng)[1])
        boxes.append((x, y, x + right - left, y + bottom - top))
        y += bottom - top + float(rng.integers(14, 44))
    return _degraded(image, rng), boxes


def _degraded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    pixels = np.asarray(image, np.float64)
    pixels = pixels + rng.standard_normal(pixels.shape) * rng.uniform(0, 15)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(25, 70)))
        image = Image.open(buffer).convert("RGB")
    return image


def _phrase(rng: np.random.Generator, shortest: int, longest: int) -> str:
    words, wanted = _words(), rng.integers(shortest, longest)
    start = int(rng.integers(len(words) - 40))
    phrase = words[start]
    while len(phrase) < wanted:
        start += 1
        phrase += " " + words[start]
    return phrase


@cache
def _words() -> list[str]:
    return [w for article in news_articles() for w in article.split() if w.isascii() and w.isprintable()]


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(int(v) for v in rng.integers(170, 256, 3)), tuple(int(v) for v in rng.integers(0, 110, 3))


def _font(rng: np.random.Generator, smallest: int, largest: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_files()[rng.integers(len(_font_files()))], int(rng.integers(smallest, largest)))


@cache
def _font_files() -> list[Path]:
    return [
        next(python_package(name, version).rglob(f"{face}.ttf")) for name, version, faces in _FONTS for face in faces
    ]
