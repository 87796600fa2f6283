"""
Draw the attention of one patch in each variant, on three embedded photographs that no variant has seen. In each, one
object is outlined by hand.

    python benchmarks/representation/draw_attention.py --data shared/data --seed 3 \
        --figure runs/representation/attention.png

Reads the encoders in the `--work` folder of `study.py`. Attention is the mean over the heads of the last two layers,
as in `protocols.judge_attention`, whose scores on held-out photographs of STL-10 are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from data import IMAGE_SIZE, load_study_data, normalise
from PIL import Image, ImageDraw
from protocols import ATTENTION_LAYERS, judge_attention, summary
from torchvision.transforms.v2 import functional as tvF

from c2fmae_hf import C2FMAEModel
from c2fmae_hf.pictures.encoder_panels import heat_picture, outlined
from c2fmae_hf.pictures.encoder_views import attention_maps
from c2fmae_hf.pictures.figures import draw_grid
from c2fmae_hf.pictures.photographs import embedded_photographs


# The outline of an object and a point inside it, by photograph, as (x, y) in hundredths of its central square.
OUTLINES = {
    "flower": ([(48 + 33 * np.cos(angle), 52 + 32 * np.sin(angle)) for angle in np.arange(0, 6.2, 0.2)], (32, 40)),
    "coffee": (
        [(18, 26), (24, 12), (38, 5), (55, 5), (70, 11), (78, 22), (77, 38), (68, 60), (58, 72), (36, 72), (26, 60)],
        (60, 36),
    ),
    "astronaut": (
        [(34, 28), (31, 10), (46, 3), (58, 14), (56, 29), (68, 55), (60, 76), (62, 100), (4, 100), (7, 58), (22, 38)],
        (40, 62),
    ),
}
WORDS = {
    "mae": "MAE",
    "cascade": "cascade, random masks",
    "curriculum": "cascade, curriculum",
    "curriculum_labels_less": "default",
}


def middle_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    return tvF.resize(tvF.center_crop(image, [side, side]), [IMAGE_SIZE, IMAGE_SIZE], tvF.InterpolationMode.BICUBIC)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--work", type=Path, default=Path("runs/representation"), help="the work folder of study.py")
    parser.add_argument("--variants", nargs="+", default=list(WORDS))
    parser.add_argument("--group", default="stl10-small-10", help="source, encoder and epochs of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, required=True)
    args = parser.parse_args()

    photographs = embedded_photographs(list(OUTLINES))
    encoders = {
        name: C2FMAEModel.from_pretrained(args.work / f"{name}-{args.seed}-{args.group}" / "encoder").eval()
        for name in args.variants
    }
    cells = []
    for photo, (outline, (x, y)) in OUTLINES.items():
        image = middle_square(photographs[photo])
        row: list[np.ndarray | None] = []
        for encoder in encoders.values():
            config = encoder.config
            side = config.grid_size[0]
            patch = (int(y / 100 * side), int(x / 100 * side))
            maps = attention_maps(encoder, normalise(tvF.pil_to_tensor(image)[None]))[-ATTENTION_LAYERS:, 0, :, 1:, 1:]
            attention = maps.mean(dim=(0, 1))
            if not row:
                row.append(outlined(with_outline(image, outline), patch, config.patch_size))
            row.append(heat_picture(attention[patch[0] * side + patch[1]].numpy(), config, patch))
        cells.append(row)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    held_out = load_study_data(args.data, with_pretraining=False).mask_test
    for name, encoder in encoders.items():
        print(f"{name}: {summary(judge_attention(encoder, held_out))}")
    draw_grid(cells, args.figure, column_names=["photograph", *(WORDS.get(name, name) for name in encoders)])


def with_outline(image: Image.Image, outline: list[tuple[float, float]]) -> np.ndarray:
    drawn = image.copy()
    points = [(x * IMAGE_SIZE / 100, y * IMAGE_SIZE / 100) for x, y in outline]
    ImageDraw.Draw(drawn).line([*points, points[0]], fill=(255, 255, 255))
    return np.asarray(drawn)


if __name__ == "__main__":
    main()
