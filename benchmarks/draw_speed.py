"""
Draw README's chart: images/s of a pre-training step, for ViTMAE with one granularity and C2FMAE with three, from the
records `step-float32` and `step-bfloat16`.

    python benchmarks/draw_speed.py docs/speed.png

Bars are medians, lines go from the slowest to the fastest turn, labels say how many times as fast as ViTMAE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tables import record

from c2fmae_hf.pictures.colours import PALETTE
from c2fmae_hf.pictures.figures import new_figure, save_figure


FONT = 15
BARS = {
    "ViTMAE": "ViTMAE",
    "C2FMAE 1.0 sdpa": "C2FMAE, all masked\npatches decoded",
    "C2FMAE 0.25 sdpa": "C2FMAE, a quarter\ndecoded (default)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()

    contents = {dtype: record(f"step-{dtype}") for dtype in ("float32", "bfloat16")}
    figure = new_figure(7.6, 5.2)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    position, ticks = 0.0, {}
    for dtype, content in contents.items():
        axes.text(0, position, dtype, va="center", fontsize=FONT, weight="bold")
        measured = {row["contender"]: row for row in content["rows"]}
        for contender, words in BARS.items():
            position += 1
            row = measured[contender]
            spread = [[row["images/s"] - row["slowest"]], [row["fastest"] - row["images/s"]]]
            colour = PALETTE[1 if contender == "ViTMAE" else 0] / 255
            axes.barh(position, row["images/s"], color=colour, xerr=spread, ecolor="black", height=0.8)
            label = f" {row['times ViTMAE']:.2f} x"
            axes.text(row["fastest"], position, label, va="center", fontsize=FONT)
            ticks[position] = words
        position += 1.3
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=FONT - 2)
    axes.tick_params(axis="x", labelsize=FONT)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.16, y=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    size, batch, pixels, *_ = contents["float32"]["settings"].split(", ")
    machine = contents["float32"]["machine"]
    cores = f"{machine['cores']} CPU core{'s' if machine['cores'] > 1 else ''}"
    axes.set_xlabel("images/s of a pre-training step", fontsize=FONT)
    figure.suptitle(f"ViT-{size.title()}/16, {pixels}, {batch}, {cores} ({machine['processor']})", fontsize=FONT)
    save_figure(figure, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
