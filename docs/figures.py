"""
The figures of the documents, from photographs that ship inside the wheels of scikit-image:

    python docs/figures.py

The overview shows predictions of the shipped weights. Maps of the others come from the classical labeller, masks from
the package's own code with fixed seeds; nothing is drawn by hand but boxes and arrows.
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
# Name and square crop (left, upper, right, lower) of each.
PHOTOGRAPHS = {
    "coffee": (100, 0, 500, 400),
    "chelsea": (70, 0, 370, 300),
    "astronaut": (0, 0, 400, 400),
    "rocket": (140, 0, 560, 420),
}
TITLE, TEXT, ARROW = 12, 11, "#555555"


@dataclass
class Example:
    """A photograph `(224, 224, 3)` uint8, and its maps on the label grid, `(56, 56)`."""

    photograph: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray

    def masked(self, strategy: str, seed: int) -> np.ndarray:
        """The photograph with three quarters of its patches hidden."""
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
        """Pictures of what each stage predicts."""
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


def show(axes, picture: np.ndarray, title: str = "", below: str = "") -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, fontsize=TITLE, pad=5)
    axes.set_xlabel(below, fontsize=TEXT, labelpad=4, color="#333333")


def arrow(figure, start: tuple[float, float], end: tuple[float, float], colour: str = ARROW) -> None:
    figure.add_artist(
        FancyArrowPatch(
            start, end, transform=figure.transFigure, arrowstyle="-|>", mutation_scale=14, linewidth=1.6, color=colour
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
        "visible patches": masked_photo(pixels, mask, patch),
        "1. semantics": np.where(is_hidden, enlarge(colour_classes(found.semantic), stride), pixels),
        "2. instances": np.where(is_hidden, enlarge(colour_instances(found.instance), stride), pixels),
        "3. pixels": found.image,
    }
    figure = new_figure(9.6, 2.55)
    width, gap = 0.183, 0.0205
    for index, (title, picture) in enumerate(panels.items()):
        left = 0.002 + index * (width + gap)
        show(figure.add_axes((left, 0.13, width, width * 9.6 / 2.55)), picture, title)
        if index:
            arrow(figure, (left - gap + 0.001, 0.475), (left - 0.0005, 0.475))
    names = {viewed.class_names[label]: label for label in np.unique(found.semantic[found.semantic >= 0]).tolist()}
    handles = [Patch(color=tuple(colour_of(label) / 255), label=name) for name, label in names.items()]
    anchor = {"loc": "upper center", "bbox_to_anchor": (0.002 + 2 * (width + gap) + width / 2, 0.14)}
    figure.legend(handles=handles, ncols=2, frameon=False, fontsize=TEXT, handlelength=1, columnspacing=1, **anchor)
    save(figure, path)


def draw_granularities(examples: dict[str, Example], path: Path) -> None:
    figure = new_figure(7.6, 7.4)
    axes = figure.subplots(3, 3)
    for row, name in enumerate(("coffee", "chelsea", "rocket")):
        targets = examples[name].targets()
        titles = ("semantic map", "instance map", "photograph") if row == 0 else ("", "", "")
        for column, (picture, title) in enumerate(zip(targets.values(), titles)):
            show(axes[row, column], picture, title)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.95, bottom=0.01, wspace=0.04, hspace=0.04)
    save(figure, path)


def draw_cascade(example: Example, path: Path) -> None:
    """Boxes are modules; small pictures are what goes in and what is to come out."""
    figure = new_figure(9.6, 5.4)

    def box(left: float, bottom: float, width: float, height: float, text: str, colour) -> None:
        patch = FancyBboxPatch(
            (left, bottom),
            width,
            height,
            transform=figure.transFigure,
            boxstyle="round,pad=0,rounding_size=0.012",
            facecolor=(*colour, 0.18),
            edgecolor=colour,
            linewidth=1.6,
        )
        figure.add_artist(patch)
        figure.text(left + width / 2, bottom + height / 2, text, fontsize=TEXT, ha="center", va="center")

    blue, orange, green, pink = (tuple(colour / 255) for colour in PALETTE[:4])
    show(figure.add_axes((0.01, 0.04, 0.18, 0.32)), example.masked("instance", seed=4), "visible patches")
    box(0.255, 0.12, 0.15, 0.15, "encoder\n(plain ViT)", blue)
    arrow(figure, (0.195, 0.195), (0.25, 0.195))
    # The encoder's tokens run along under the stages.
    box(0.47, 0.15, 0.52, 0.09, "encoded visible patches: keys and values of every stage", blue)
    arrow(figure, (0.41, 0.195), (0.465, 0.195))

    box(0.255, 0.42, 0.15, 0.13, "mask token\n+ position,\nper masked patch", (0.4, 0.4, 0.4))
    lefts, width = (0.47, 0.655, 0.84), 0.15
    names = {"semantic": "semantic stage", "instance": "instance stage", "image": "image stage"}
    arrow(figure, (0.41, 0.485), (lefts[0] - 0.005, 0.485))
    for index, (left, (name, picture), colour) in enumerate(
        zip(lefts, example.targets().items(), (orange, green, pink))
    ):
        box(left, 0.42, width, 0.13, f"{names[name]}\ncross-attention", colour)
        arrow(figure, (left + width / 2, 0.245), (left + width / 2, 0.415))
        show(figure.add_axes((left + 0.01, 0.64, width - 0.02, 0.235)), picture)
        arrow(figure, (left + width / 2, 0.555), (left + width / 2, 0.635))
        title = ("class of each cell", "offset to the centre,\nforeground", "normalised pixels")[index]
        figure.text(left + width / 2, 0.89, title, fontsize=TEXT, ha="center", va="bottom")
        if index < 2:
            arrow(figure, (left + width + 0.003, 0.485), (lefts[index + 1] - 0.004, 0.485))
            # What a stage predicts goes on, too.
            arrow(figure, (left + width - 0.005, 0.64), (lefts[index + 1] + 0.03, 0.555), colour="#999999")
    note = "Passed to the next stage:\nthe refined queries (dark)\nand the prediction (light)."
    figure.text(0.01, 0.72, note, fontsize=TEXT, va="center")
    save(figure, path)


def draw_curriculum(example: Example, path: Path) -> None:
    figure = new_figure(9.0, 6.2)
    show(figure.add_axes((0.12, 0.655, 0.25, 0.25 * 9.0 / 6.2 * 0.69)), example.photograph, "photograph")
    axes = figure.add_axes((0.07, 0.09, 0.35, 0.42))
    progress = torch.linspace(0, 1, 101)
    probabilities = MaskingCurriculum().probabilities(progress)
    for index, (name, style) in enumerate(zip(MASKING_STRATEGIES, ("-", "--", ":"))):
        axes.plot(progress, probabilities[:, index], style, color=PALETTE[index] / 255, linewidth=2.5, label=name)
    axes.set_xlabel("training progress", fontsize=TEXT)
    axes.set_ylabel("probability", fontsize=TEXT)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    legend = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "frameon": False}
    axes.legend(fontsize=TEXT, columnspacing=1.2, handlelength=1.6, **legend)
    for row, strategy in enumerate(MASKING_STRATEGIES):
        bottom = 0.655 - row * 0.32
        for column in range(3):
            left = 0.475 + column * 0.178
            show(figure.add_axes((left, bottom, 0.172, 0.25)), example.masked(strategy, seed=4 + column))
        figure.text(0.477, bottom + 0.262, f"{strategy}, three draws", fontsize=TITLE)
    save(figure, path)


def save(figure, path: Path) -> None:
    """With 256 colours, which halves the file."""
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
