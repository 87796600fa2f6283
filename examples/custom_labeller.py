"""
A labeller of your own: bright pixels are one class, and each connected bright part is an instance.

    python examples/custom_labeller.py photos runs/bright

Takes a few milliseconds per photograph. The result is a dataset for `c2fmae pretrain`.
"""

import sys

import numpy as np
from skimage import filters, measure

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.base import Labeller
from c2fmae_hf.labelling.records import LabelMaps
from c2fmae_hf.labelling.sources.open import open_source


class BrightnessLabeller(Labeller):
    name = "brightness"
    summary = "Bright parts by Otsu's threshold, which are not objects."
    id2label = {0: "dark", 1: "bright"}

    def __init__(self, min_area: int = 64) -> None:
        self.min_area = min_area

    def settings(self) -> dict:
        return {"min_area": self.min_area}  # an interrupted job continues only with the same settings

    def __call__(self, batch) -> list[LabelMaps]:
        return [self.label(np.asarray(prepared.image.convert("L"))) for prepared in batch]

    def label(self, grey: np.ndarray) -> LabelMaps:
        if grey.min() == grey.max():
            raise ValueError("expected an image with contrast")  # rejects this image; the job continues
        bright = grey > filters.threshold_otsu(grey)
        parts = measure.label(bright)
        areas = np.bincount(parts.ravel())
        return LabelMaps(bright.astype(np.int32), np.where(areas[parts] >= self.min_area, parts, 0))


photos, output_dir = sys.argv[1:3]
print(label_images(open_source(photos), BrightnessLabeller(), output_dir))
