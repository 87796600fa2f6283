"""Photographs that users supply, and those that ship with scikit-image and scikit-learn (extra `all`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..images import exif_turn, number_of_frames, open_image, to_rgb
from .views import MAX_ASPECT


# Limits for images of unknown origin: larger ones take too much memory, smaller ones show nothing.
MAX_PIXELS = 50_000_000
MIN_SIDE = 32
# Images in scikit-image that need no download.
_SKIMAGE_NAMES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "rocket")


def embedded_photographs(names: Sequence[str] | None = None) -> dict[str, Image.Image]:
    """
    Load RGB photographs that need no download.

    Args:
        names (*optional*): Names in the order of the result; by default all.

    Raises:
        `ValueError`: for an unknown name.
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
    Open a photograph of unknown origin as an image viewer would.

    Args:
        value: As for [`~c2fmae_hf.images.open_image`].
        max_pixels (`int`): Larger images are refused before their pixels are read.

    Returns:
        The image, 8-bit RGB, rotated as its EXIF orientation says; and sentences that tell the user how it was
        changed, or will be by [`~c2fmae_hf.pictures.views.prepare_photo`].

    Raises:
        `ValueError`: if it is not an image, or too large, too small or damaged.
    """
    image = open_image(value, max_pixels)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"expected at least {MIN_SIDE} pixels a side, got {image.width} x {image.height}")
    rgb = to_rgb(image)  # first, since counting frames may leave the image at a damaged one
    notes = []
    if (frames := number_of_frames(image)) > 1:
        notes.append(f"The file holds {frames} pictures; the first is used.")
    if exif_turn(image) is not None:
        notes.append("The photograph was rotated as its EXIF orientation says.")
    if image.mode == "CMYK":
        notes.append("Its CMYK colours were converted to RGB without a colour profile.")
    if max(rgb.size) > MAX_ASPECT * min(rgb.size):
        notes.append(f"Only the middle of its {rgb.width} x {rgb.height} pixels is shown.")
    return rgb, notes
