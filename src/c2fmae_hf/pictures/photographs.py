"""Photographs that people hand in, and those that ship inside scikit-image and scikit-learn (`label` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..images import exif_turn, number_of_frames, open_image, to_rgb
from .views import MAX_ASPECT


# Limits of our choice for images of strangers: larger ones take too much memory, smaller ones show nothing.
MAX_PIXELS = 50_000_000
MIN_SIDE = 32
# Of scikit-image; those that need no download.
_SKIMAGE_NAMES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "rocket")


def embedded_photographs(names: Sequence[str] | None = None) -> dict[str, Image.Image]:
    """
    Photographs that need no download, RGB.

    Args:
        names (*optional*): Which, in the wished order; by default all that there are.

    Raises:
        `ValueError`: for a name that is not one of them.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    loaders = {name: getattr(data, name) for name in _SKIMAGE_NAMES}
    loaders["motorcycle"] = lambda: data.stereo_motorcycle()[0]
    samples = load_sample_images()
    for filename, pixels in zip(samples.filenames, samples.images):
        loaders[Path(filename).stem] = lambda pixels=pixels: pixels
    wanted = list(loaders if names is None else names)
    if unknown := [name for name in wanted if name not in loaders]:
        raise ValueError(f"names: expected some of {list(loaders)}, got {unknown}")
    return {name: Image.fromarray(loaders[name]()).convert("RGB") for name in wanted}


def open_photograph(value: Any, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, list[str]]:
    """
    A photograph from an unknown hand, as a viewer shows it.

    Args:
        value: As for [`~c2fmae_hf.images.open_image`].
        max_pixels (`int`): A larger image is refused before it is read.

    Returns:
        The image, 8-bit RGB, rotated as its EXIF orientation says; and sentences, which a person would want to know,
        about what was done to it or will be by [`~c2fmae_hf.pictures.views.prepare_photo`].

    Raises:
        `ValueError`: if it is no image, or one that is too large, too small or damaged.
    """
    image = open_image(value, max_pixels)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"expected at least {MIN_SIDE} pixels a side, got {image.width} x {image.height}")
    rgb = to_rgb(image)  # before frames are looked for, which may leave the image at a damaged one
    notes = []
    if (frames := number_of_frames(image)) > 1:
        notes.append(f"The file holds {frames} pictures; the first is used.")
    if exif_turn(image) is not None:
        notes.append("The photograph was rotated as its EXIF orientation says.")
    if image.mode == "CMYK":
        notes.append("Its CMYK colours were converted to RGB without a colour profile.")
    if max(rgb.size) > MAX_ASPECT * min(rgb.size):
        notes.append(f"Of {rgb.width} x {rgb.height} pixels the middle is shown.")
    return rgb, notes
