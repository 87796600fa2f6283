"""
Draw the documents' figures from photographs that ship with scikit-image:

    python docs/figures.py

The overview shows predictions of the shipped weights. In the other figures the maps come from the classical labeller
and the masks from the package's own code, with fixed seeds.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from PIL import Image
from skimage import data

from c2fmae_hf.constants import MASKING_STRATEGIES
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.masking import MaskingCurriculum, mask_by_strategy
from c2fmae_hf.pictures.colours import PALETTE, UNKNOWN_COLOUR, colour_classes, colour_instances, colour_of, enlarge
from c2fmae_hf.pictures.figures import new_figure
from c2fmae_hf.pictures.views import load_viewed_model, masked_photo, predict, prepare_photo, strategy_mask
from c2fmae_hf.utils.files import replace_file


FIGURES = Path(__file__).parent / "figures"
WEIGHTS = Path(__file__).parents[1] / "model_cards/c2fmae-vit-tiny-stl10"
SIZE, PATCH, STRIDE = 224, 16, 4
GRID = SIZE // PATCH
# Square crops: left, upper, right, lower.
PHOTOGRAPHS = {
    "coffee": (100, 0, 500, 400),
    "chelsea": (70, 0, 370, 300),
    "astronaut": (0, 0, 400, 400),
    "rocket": (140, 0, 560, 420),
}
# Points at 100 dots an inch: readable where a phone shows a figure at 380 pixels.
TEXT, ARROW = 18, "#555555"


@dataclass
class Example:
    """A photograph `(224, 224, 3)`, uint8, with its maps on the label grid, `(56, 56)`."""

    photograph: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray

    def masked(self, strategy: str, seed: int) -> np.ndarray:
        """The photograph with 75 % of its patches hidden."""
        uniform = torch.rand(1, 2 * GRID**2, generator=torch.Generator().manual_seed(seed))
        mask, _ = mask_by_strategy(
            torch.from_numpy(self.semantic)[None].long(),
            torch.from_numpy(self.instance)[None].long(),
            torch.tensor([MASKING_STRATEGIES.index(strategy)]),
            uniform,
            num_masked=round(0.75 * GRID**2),
            cells_per_side=PATCH // STRIDE,
        )
        hidden = enlarge(mask[0].numpy().reshape(GRID, GRID), PATCH)
        return np.where(hidden[..., None], np.array(UNKNOWN_COLOUR, dtype=np.uint8), self.photograph)

    def targets(self) -> dict[str, np.ndarray]:
        """A picture of each stage's target."""
        return {
            "semantic": colour_classes(self.semantic),
            "instance": colour_instances(self.instance),
            "image": self.photograph,
        }


def make_examples() -> dict[str, Example]:
    photographs = {
        name: Image.fromarray(getattr(data, name)()).crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for name, box in PHOTOGRAPHS.items()
    }
    labeller = ClassicalLabeller(num_classes=8, working_size=SIZE, scale=400, instance_area=(0.004, 0.25))
    labeller.fit(photographs.values())
    examples = {}
    for name, photograph in photographs.items():
        maps = labeller.label(photograph)
        cells = np.s_[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        examples[name] = Example(np.asarray(photograph), maps.semantic[cells], maps.instance[cells])
    return examples


def show(axes, picture: np.ndarray, title: str = "") -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, fontsize=TEXT, pad=5)


def arrow(figure, start: tuple[float, float], end: tuple[float, float], colour: str = ARROW, size: int = 18) -> None:
    figure.add_artist(
        FancyArrowPatch(
            start, end, transform=figure.transFigure, arrowstyle="-|>", mutation_scale=size, linewidth=2, color=colour
        )
    )


def draw_overview(path: Path) -> None:
    """Predictions of the shipped weights for a photograph of a cat, with a mask under which they recognise it."""
    viewed = load_viewed_model(str(WEIGHTS))
    photo = prepare_photo("chelsea", Image.fromarray(data.chelsea()).crop((60, 0, 360, 300)), viewed.config)
    mask, _ = strategy_mask(photo, viewed.config, "random", seed=3)
    found = predict(viewed, photo, mask)
    pixels = viewed.processor.to_pixels(photo.pixel_values[None])[0]
    patch, stride = viewed.config.patch_size, viewed.config.label_stride
    is_hidden = enlarge(mask.numpy().reshape(viewed.config.grid_size), patch)[..., None]
    panels = {
        "photograph": pixels,
        "visible": masked_photo(pixels, mask, patch),
        "semantics": np.where(is_hidden, enlarge(colour_classes(found.semantic), stride), pixels),
        "instances": np.where(is_hidden, enlarge(colour_instances(found.instance), stride), pixels),
        "pixels": found.image,
    }
    figure = new_figure(9.6, 2.6)
    width, gap = 0.183, 0.0205
    for index, (title, picture) in enumerate(panels.items()):
        left = 0.002 + index * (width + gap)
        show(figure.add_axes((left, 0.16, width, width * 9.6 / 2.6)), picture, title)
        if index:
            arrow(figure, (left - gap + 0.001, 0.5), (left - 0.0005, 0.5), size=12)
    names = {viewed.class_names[label]: label for label in np.unique(found.semantic[found.semantic >= 0]).tolist()}
    handles = [Patch(color=tuple(colour_of(label) / 255), label=name) for name, label in names.items()]
    anchor = {"loc": "upper center", "bbox_to_anchor": (0.002 + 2 * (width + gap) + width / 2, 0.18)}
    figure.legend(handles=handles, ncols=2, frameon=False, fontsize=TEXT, handlelength=1, columnspacing=1, **anchor)
    save(figure, path)


def draw_granularities(examples: dict[str, Example], path: Path) -> None:
    figure = new_figure(7.6, 7.6)
    axes = figure.subplots(3, 3)
    for row, name in enumerate(("coffee", "chelsea", "rocket")):
        targets = examples[name].targets()
        titles = ("semantic map", "instance map", "photograph") if row == 0 else ("", "", "")
        for column, (picture, title) in enumerate(zip(targets.values(), titles)):
            show(axes[row, column], picture, title)
    figure.subplots_adjust(left=0.003, right=0.997, top=0.945, bottom=0.003, wspace=0.03, hspace=0.03)
    save(figure, path)


def draw_cascade(example: Example, path: Path) -> None:
    """
    Boxes are modules; small pictures are what goes in and what each stage predicts. Arrows between the stages hand on
    the queries; arrows down from a picture, the prediction.
    """
    width, height = 9.0, 7.2
    figure = new_figure(width, height)

    # All places are in inches.
    def place(x: float, y: float) -> tuple[float, float]:
        return x / width, y / height

    def box(left: float, bottom: float, across: float, up: float, text: str, colour) -> None:
        patch = FancyBboxPatch(
            (left, bottom),
            across,
            up,
            transform=figure.dpi_scale_trans,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=(*colour, 0.18),
            edgecolor=colour,
            linewidth=2,
        )
        figure.add_artist(patch)
        figure.text(*place(left + across / 2, bottom + up / 2), text, fontsize=TEXT, ha="center", va="center")

    def panel(left: float, bottom: float, picture: np.ndarray, title: str) -> None:
        show(figure.add_axes((*place(left, bottom), *place(side, side))), picture, title)

    blue, orange, green, pink = (tuple(colour / 255) for colour in PALETTE[:4])
    lefts, side, stage_bottom, stage_up = (0.05, 2.4, 4.7, 7.0), 1.95, 2.95, 0.95
    panel(lefts[0], 0.05, example.masked("instance", seed=4), "visible")
    box(lefts[1], 0.55, lefts[3] + side - lefts[1], 0.95, "encoder (ViT)", blue)
    arrow(figure, place(lefts[0] + side + 0.05, 1.025), place(lefts[1] - 0.04, 1.025))
    box(lefts[0], stage_bottom, side, stage_up, "mask tokens", (0.4, 0.4, 0.4))

    titles, colours = ("semantics", "instances", "pixels"), (orange, green, pink)
    middle = stage_bottom + stage_up / 2
    for index, (left, picture) in enumerate(zip(lefts[1:], example.targets().values())):
        box(left, stage_bottom, side, stage_up, f"stage {index + 1}", colours[index])
        arrow(figure, place(lefts[index] + side + 0.04, middle), place(left - 0.04, middle))
        centre = left + side / 2
        arrow(figure, place(centre, 1.55), place(centre, stage_bottom - 0.05))
        panel(left, 4.85, picture, titles[index])
        arrow(figure, place(centre, stage_bottom + stage_up + 0.05), place(centre, 4.8))
        if index < 2:
            start, end = place(left + side - 0.15, 4.8), place(lefts[index + 2] + 0.4, stage_bottom + stage_up + 0.05)
            arrow(figure, start, end, colour="#999999")
    save(figure, path)


def draw_curriculum(example: Example, path: Path) -> None:
    """Left the strategies' probabilities, above them the photograph; right three masks of each strategy."""
    width, height = 9.6, 7.0
    figure = new_figure(width, height)
    side, left, step = 1.72, 4.28, 2.25
    axes = figure.add_axes((1.15 / width, 0.85 / height, 2.6 / width, 2.55 / height))
    progress = torch.linspace(0, 1, 101)
    probabilities = MaskingCurriculum().probabilities(progress)
    for index, (name, style) in enumerate(zip(MASKING_STRATEGIES, ("-", "--", ":"))):
        axes.plot(progress, probabilities[:, index], style, color=PALETTE[index] / 255, linewidth=3.5, label=name)
    axes.set_xlabel("training progress", fontsize=TEXT)
    axes.set_ylabel("probability", fontsize=TEXT)
    axes.tick_params(labelsize=15)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.grid(alpha=0.3)
    legend = {"loc": "lower left", "bbox_to_anchor": (-0.05, 1.0), "frameon": False}
    axes.legend(fontsize=TEXT, handlelength=1.6, labelspacing=0.2, **legend)
    top = height - 0.4 - side
    show(figure.add_axes((1.45 / width, top / height, 2 / width, side / height)), example.photograph, "photograph")
    for row, strategy in enumerate(MASKING_STRATEGIES):
        bottom = top - row * step
        for column in range(3):
            x = left + column * (side + 0.06)
            picture = example.masked(strategy, seed=4 + column)
            show(figure.add_axes((x / width, bottom / height, side / width, side / height)), picture)
        figure.text(left / width, (bottom + side + 0.08) / height, f"{strategy} masking", fontsize=TEXT)
    save(figure, path)


def save(figure, path: Path) -> None:
    """Write the figure with 256 colours, which halves the file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, Image.open(drawn) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(temporary, format="PNG", optimize=True)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=FIGURES)
    folder = parser.parse_args(args).output_dir
    examples = make_examples()
    draw_overview(folder / "overview.png")
    draw_granularities(examples, folder / "granularities.png")
    draw_cascade(examples["coffee"], folder / "cascade.png")
    draw_curriculum(examples["coffee"], folder / "curriculum.png")


if __name__ == "__main__":
    main()
