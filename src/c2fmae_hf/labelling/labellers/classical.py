"""
Labels without a trained model: regions of similar colour (scikit-image), whose descriptors are clustered into classes
over the dataset (scikit-learn). Needs no weights, and does not know objects.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from ...utils.files import replace_file
from ...utils.packages import require
from ..records import LabelMaps, PreparedImage
from .base import Labeller


# Weights of the standardised descriptors: mean Lab colour, its spread, edges, height in the image.
_DESCRIPTOR_WEIGHTS = np.array([1.0, 1.0, 1.0, 0.7, 0.5, 0.5, 0.7, 0.5])
_FITTED_FILE = "classical.safetensors"


class ClassicalLabeller(Labeller):
    """
    Labeller whose semantic classes are clusters of regions of similar colour, texture and height in the image, and
    whose instances are the regions of medium size.

    Args:
        num_classes (`int`): Semantic classes.
        regions (`str`): `felzenszwalb` (Felzenszwalb and Huttenlocher's graph-based segmentation) or `slic`.
        working_size (`int`): Images whose shorter side is longer are resized to it before segmentation.
        scale (`float`): felzenszwalb: larger values give larger regions.
        num_segments (`int`): slic: regions per image.
        instance_area (`tuple[float, float]`): Smallest and largest share of the image for an instance.
        fit_images (`int`): Images on which the classes are found.
        seed (`int`): Seed of the clustering.

    Raises:
        `ImportError`: if a package that it needs is missing.
        `ValueError`: for an unknown method, or fewer than one class.
    """

    name = "classical"
    libraries = ("scikit-image", "scikit-learn")
    batch_size = 1
    summary = (
        "The maps come from classical segmentation without a trained model: instances are regions of similar colour, "
        "and semantic classes are clusters of regions of similar colour and texture. They do not follow objects: one "
        "object may be split into many instances, and a class is a colour rather than a kind of thing."
    )

    def __init__(
        self,
        num_classes: int = 32,
        regions: str = "felzenszwalb",
        working_size: int = 192,
        scale: float = 400.0,
        num_segments: int = 32,
        instance_area: tuple[float, float] = (0.002, 0.12),
        fit_images: int = 256,
        seed: int = 0,
    ) -> None:
        for package in ("skimage", "sklearn", "threadpoolctl"):
            require(package, "the classical labeller")
        if regions not in ("felzenszwalb", "slic"):
            raise ValueError(f"regions: expected 'felzenszwalb' or 'slic', got {regions!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        self.num_classes, self.regions, self.working_size = num_classes, regions, working_size
        self.scale, self.num_segments, self.instance_area = scale, num_segments, tuple(instance_area)
        self.fit_images, self.seed = fit_images, seed
        self.id2label = {index: f"cluster {index}" for index in range(num_classes)}
        # Mean and spread of the descriptors, and the clusters' centres among the standardised ones.
        self.fitted: dict[str, np.ndarray] | None = None

    def settings(self) -> dict[str, Any]:
        names = (
            "num_classes",
            "regions",
            "working_size",
            "scale",
            "num_segments",
            "instance_area",
            "fit_images",
            "seed",
        )
        return {name: getattr(self, name) for name in names}

    def fit(self, images: Iterable[Image.Image]) -> ClassicalLabeller:
        """
        Find the classes.

        Args:
            images: A sample of the dataset, RGB.

        Raises:
            `ValueError`: if the sample has fewer regions than `num_classes`.
        """
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        described = [self._segment(image)[1:] for image in images]
        if not described:
            raise ValueError("images: expected some that can be decoded, to find classes in, got none")
        descriptors = np.concatenate([descriptor for descriptor, _ in described])
        if len(descriptors) < self.num_classes:
            raise ValueError(
                f"num_classes: expected at most as many as the sample's regions ({len(descriptors)}), got "
                f"{self.num_classes}; give more images or fewer classes"
            )
        area = np.concatenate([share for _, share in described])
        mean, spread = descriptors.mean(axis=0), descriptors.std(axis=0) + 1e-6
        clustering = MiniBatchKMeans(self.num_classes, n_init=4, random_state=self.seed, batch_size=4096)
        # One thread, so that sums have the same order, and classes are the same, on every machine.
        with threadpool_limits(limits=1):
            # Large regions weigh more, but less than in proportion to their area.
            clustering.fit((descriptors - mean) / spread * _DESCRIPTOR_WEIGHTS, sample_weight=np.sqrt(area))
        self.fitted = {"mean": mean, "spread": spread, "centres": clustering.cluster_centers_.astype(np.float64)}
        return self

    def prepare(self, images: Iterator[Image.Image], folder: Path) -> None:
        path = folder / _FITTED_FILE
        settings = json.dumps(self.settings(), sort_keys=True)
        if path.is_file():
            try:
                with safe_open(path, "np") as file:
                    same = (file.metadata() or {}).get("settings") == settings
                if same:
                    self.fitted = load_file(path)
                    return
            except SafetensorError as error:
                raise ValueError(f"{path}: expected the fitted classes, got a damaged file: {error}") from None
        sample = itertools.islice(images, self.fit_images)
        self.fit(tqdm(sample, desc="Finding classes", unit=" images", mininterval=1))
        folder.mkdir(parents=True, exist_ok=True)
        assert self.fitted is not None  # by fit()
        with replace_file(path) as temporary:
            save_file(self.fitted, temporary, metadata={"settings": settings})

    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        return [self.label(prepared.image) for prepared in batch]

    def label(self, image: Image.Image) -> LabelMaps:
        """Maps of one RGB image; their shorter side is at most `working_size`."""
        if self.fitted is None:
            raise RuntimeError("the labeller has not been fitted: call fit() or prepare()")
        regions, descriptors, area = self._segment(image)
        standardised = (descriptors - self.fitted["mean"]) / self.fitted["spread"] * _DESCRIPTOR_WEIGHTS
        distance = np.square(standardised[:, None] - self.fitted["centres"]).sum(axis=-1)
        semantic = distance.argmin(axis=1).astype(np.int32)[regions]
        is_instance = (area >= self.instance_area[0]) & (area <= self.instance_area[1])
        instance = np.where(is_instance, np.arange(1, len(area) + 1), 0).astype(np.int32)[regions]
        return LabelMaps(semantic, instance)

    def _segment(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Regions `(height, width)` numbered from 0, their descriptors `(regions, 8)`, their shares of the image."""
        from skimage import color, filters, segmentation

        if min(image.size) > self.working_size:
            factor = self.working_size / min(image.size)
            image = image.resize(
                (round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR
            )
        pixels = np.asarray(image)
        if self.regions == "felzenszwalb":
            # About 23 regions in a photograph of COCO, with the defaults.
            regions = segmentation.felzenszwalb(
                pixels, scale=self.scale, sigma=0.9, min_size=max(pixels.shape[0] * pixels.shape[1] // 250, 1)
            )
        else:
            regions = segmentation.slic(pixels, n_segments=self.num_segments, compactness=10, start_label=0)
        regions = np.unique(regions, return_inverse=True)[1].reshape(regions.shape)

        lab = color.rgb2lab(pixels)
        edges = filters.sobel(lab[..., 0])
        height = np.linspace(0, 1, pixels.shape[0])[:, None].repeat(pixels.shape[1], axis=1)
        ids = regions.ravel()
        size = np.bincount(ids)

        def average(values: np.ndarray) -> np.ndarray:
            return np.bincount(ids, values.ravel()) / size

        colour = [average(lab[..., channel]) for channel in range(3)]
        spread = [
            np.sqrt(np.maximum(average(lab[..., channel] ** 2) - colour[channel] ** 2, 0)) for channel in range(3)
        ]
        return regions, np.stack([*colour, *spread, average(edges), average(height)], axis=1), size / ids.size
