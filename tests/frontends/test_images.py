"""A folder of images with its preprocessing declared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qcompile.compiler.inputs import ModelInput
from qcompile.errors import DataError, QCompileError, UsageError
from qcompile.frontends.calibration_data import open_calibration

INPUTS = [ModelInput("image", np.dtype(np.float32), (1, 3, 16, 16))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 40 x 20 pixels in the colours (255, 0, 0) and (0, 0, 255), one of them in a subfolder."""
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / "a.png")
    Image.new("RGB", (40, 20), (0, 0, 255)).save(folder / "b" / "a.png")
    return folder


def declare(folder: Path, text: str) -> Path:
    (folder / "preprocessing.yaml").write_text(text)
    return folder


def fault(path: Path) -> QCompileError:
    with pytest.raises(QCompileError) as caught:
        open_calibration(path, INPUTS)
    return caught.value


def test_pixels_arrive_as_declared(folder: Path) -> None:
    declare(folder, "{resize: 16, crop: 16, mean: [0.5, 0.0, 0.0], std: [0.5, 1, 2]}")
    first, second = open_calibration(folder, INPUTS)
    assert first["image"].shape == (1, 3, 16, 16)
    assert first["image"].dtype == np.float32
    np.testing.assert_allclose(first["image"][0, :, 3, 3], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(second["image"][0, :, 3, 3], [-1.0, 0.0, 0.5])


def test_color_layout_and_both_sides(folder: Path) -> None:
    declare(folder, "{resize: [8, 4], color: bgr, layout: nhwc, divide: 1}")
    first, _ = open_calibration(folder, [ModelInput("image", np.dtype(np.uint8), (1, 8, 4, 3))])
    assert first["image"].shape == (1, 8, 4, 3)
    np.testing.assert_array_equal(first["image"][0, 0, 0], [0, 0, 255])


def test_gray(folder: Path) -> None:
    declare(folder, "{resize: [16, 16], color: gray}")
    first, _ = open_calibration(folder, [ModelInput("image", np.dtype(np.float32), (1, 1, 16, 16))])
    np.testing.assert_allclose(first["image"], 76 / 255, atol=1e-6)


def test_the_shorter_side_keeps_the_proportion(folder: Path) -> None:
    declare(folder, "{resize: 10}")
    first, _ = open_calibration(folder, [ModelInput("image", np.dtype(np.float32), (1, 3, 10, 20))])
    assert first["image"].shape == (1, 3, 10, 20)


def test_a_declaration_elsewhere_names_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("{images: images, resize: 16, crop: 16}")
    assert len(open_calibration(tmp_path / "rules.yaml", INPUTS)) == 2


def test_without_declaration_the_hint_shows_one(folder: Path) -> None:
    error = fault(folder)
    assert isinstance(error, UsageError)
    assert "preprocessing declared" in error.what
    assert "mean:" in error.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{resise: 3}", "'resise' is not an option of the preprocessing; did you mean 'resize'?"),
        ("{resize: -1}", "'resize' must be a whole number of pixels above 0, or [height, width], not -1"),
        ("{resize: [3, large]}", 'not [3, "large"]'),
        ("{divide: 0, layout: hwc}", "'divide' must be a number above 0, not 0; 'layout' must be nchw or nhwc"),
        ("[resize, 3]", "a mapping of options"),
        ("{mean: [1, 2]}", "2 numbers"),
        ("{std: [0, 1, 1]}", "'std' must be a list of numbers above 0"),
        ("{color: cmyk}", "'color' must be rgb, bgr or gray, not \"cmyk\""),
        ("[1, 2", "cannot be read"),
        ("{input: picture}", "no input 'picture'"),
    ],
)
def test_wrong_declarations(folder: Path, text: str, expected: str) -> None:
    assert expected in fault(declare(folder, text)).what


def test_wrong_images(folder: Path) -> None:
    assert "fewer than the crop" in fault(declare(folder, "{crop: 30}")).what
    (folder / "a.png").write_bytes(b"no image")
    error = fault(declare(folder, "{resize: 16, crop: 16}"))
    assert isinstance(error, DataError)
    assert error.where.endswith("a.png")
