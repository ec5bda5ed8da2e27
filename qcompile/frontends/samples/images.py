"""A folder of images with its declared preprocessing.

`preprocessing.yaml` lies in the folder (or elsewhere, and names the folder in `images`):

    resize: 256              # shorter side, or [height, width]; left out: unchanged
    crop: 224                # from the centre, or [height, width]; left out: all of it
    interpolation: bilinear  # nearest, bilinear, bicubic, lanczos
    color: rgb               # rgb, bgr, gray
    divide: 255              # x / divide, then (x - mean) / std per channel
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
    layout: nchw             # nchw, nhwc
    input: pixel_values      # left out: the model's only input

Each image becomes one sample with a batch of one, in the input's element type.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from qcompile.compiler.inputs import ModelInput
from qcompile.errors import DataError, UsageError
from qcompile.frontends.samples.files import IMAGES, FileSamples, below, only_input

DECLARATION = "preprocessing.yaml"


class Preprocessing(BaseModel):
    """The content of `preprocessing.yaml`; see the module's description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str = "."
    input: str | None = None
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    divide: PositiveFloat = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[PositiveFloat, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"


_EXPECTED = {
    "images": "the path of a folder",
    "input": "the name of an input",
    "resize": "a whole number of pixels above 0, or [height, width]",
    "crop": "a whole number of pixels above 0, or [height, width]",
    "interpolation": "nearest, bilinear, bicubic or lanczos",
    "color": "rgb, bgr or gray",
    "divide": "a number above 0",
    "mean": "a list of numbers, one for each channel",
    "std": "a list of numbers above 0, one for each channel",
    "layout": "nchw or nhwc",
}


def open_images(path: Path, inputs: Sequence[ModelInput]) -> FileSamples:
    """Samples from a folder of images, or from a declaration that names one.

    Raises:
        UsageError: no declaration, a wrong one, or Pillow is not installed.
    """
    declaration = path / DECLARATION if path.is_dir() else path
    rules = _read(declaration)
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UsageError("reading images needs Pillow", hint="pip install 'qcompile[images]'") from None
    name = rules.input or only_input(inputs, "an image is one input")
    if name not in {i.name for i in inputs}:
        raise UsageError(
            f"the model has no input '{name}'",
            where=str(declaration),
            hint=f"it has {', '.join(i.name for i in inputs)}",
        )
    dtype = next(i.dtype for i in inputs if i.name == name)
    folder = declaration.parent / rules.images
    files = below(folder, IMAGES)
    if not files:
        raise UsageError("no images were found here", where=str(folder), hint="known: " + ", ".join(IMAGES))
    return FileSamples(files, lambda file: {name: load_image(file, rules).astype(dtype)}, f"{len(files)} images")


def load_image(file: Path, rules: Preprocessing) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One image, preprocessed: float32, shape [1, C, H, W] or [1, H, W, C]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if rules.color == "gray" else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be read: {error}", where=str(file)) from None
    if rules.resize is not None:
        resample = Image.Resampling[rules.interpolation.upper()]
        image = image.resize(_resized(image.size, rules.resize), resample)
    if rules.crop is not None:
        height, width = (rules.crop, rules.crop) if isinstance(rules.crop, int) else rules.crop
        if image.width < width or image.height < height:
            raise DataError(
                f"the image has {image.height} x {image.width} pixels, fewer than the crop of {height} x {width}",
                where=str(file),
                hint="set `resize` at least as large as `crop`",
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
    if rules.color == "bgr":
        pixels = pixels[..., ::-1]
    pixels = pixels / np.float32(rules.divide)
    pixels = np.divide(pixels - np.array(rules.mean, np.float32), np.array(rules.std, np.float32))
    if rules.layout == "nchw":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None])


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing: the shorter side becomes `resize`, or both are given as (height, width)."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, round(height * resize / width)
    return round(width * resize / height), resize


def _fault(name: str, data: Any) -> str:
    """What is wrong with one option, or with the whole file."""
    if not name:
        return "the preprocessing is a mapping of options"
    if name not in _EXPECTED:
        close = difflib.get_close_matches(name, _EXPECTED, n=1)
        return f"'{name}' is not an option of the preprocessing" + (f"; did you mean '{close[0]}'?" if close else "")
    return f"'{name}' must be {_EXPECTED[name]}, not {json.dumps(data[name], default=str)}"


def _read(declaration: Path) -> Preprocessing:
    import yaml

    try:
        data = yaml.safe_load(declaration.read_text())
    except FileNotFoundError:
        raise UsageError(
            "a folder of images needs its preprocessing declared",
            where=str(declaration),
            hint="write this file, for example: {resize: 256, crop: 224, "
            "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the preprocessing cannot be read: {error}", where=str(declaration)) from None
    try:
        rules = Preprocessing.model_validate({} if data is None else data)
    except ValidationError as error:
        faults = dict.fromkeys(str(e["loc"][0]) if e["loc"] else "" for e in error.errors())
        raise UsageError(
            "; ".join(_fault(name, data) for name in faults),
            where=str(declaration),
            hint="options: " + ", ".join(Preprocessing.model_fields),
        ) from None
    channels = 1 if rules.color == "gray" else 3
    for option, values in (("mean", rules.mean), ("std", rules.std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"'{option}' has {len(values)} numbers, the images have {channels} channels", where=str(declaration)
            )
    return rules
