"""
Draw README's chart: images/s of a pre-training step, for ViTMAE with one granularity and C2FMAE with three.

    python benchmarks/draw_speed.py docs/speed.png runs/float32.json:sdpa runs/bfloat16.json:eager

Each result of `pretraining_step.py` is followed by the attention whose rows are drawn. Bars are medians, lines go from
the slowest to the fastest turn, labels say how many times as fast as ViTMAE. A percentage is that of masked patches
that are decoded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from c2fmae_hf.pictures.colours import PALETTE
from c2fmae_hf.pictures.figures import new_figure, save_figure


FONT = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("results", nargs="+", help="FILE:ATTENTION")
    args = parser.parse_args()

    contents = []
    for path, _, attention in (result.rpartition(":") for result in args.results):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        drawn = [row for row in content["rows"] if row["contender"].split()[-1] in ("ViTMAE", attention)]
        contents.append({**content, "rows": drawn})
    figure = new_figure(7.6, 5.6)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    position, ticks = 0.0, {}
    for content in contents:
        axes.text(0, position, content["settings"].split(", ")[3], va="center", fontsize=FONT, weight="bold")
        position += 1
        for row in content["rows"]:
            is_peer = row["contender"] == "ViTMAE"
            spread = [[row["images/s"] - row["slowest"]], [row["fastest"] - row["images/s"]]]
            colour = PALETTE[1 if is_peer else 0] / 255
            axes.barh(position, row["images/s"], color=colour, xerr=spread, ecolor="black", height=0.8)
            axes.text(row["fastest"] + 0.2, position, f"{row['times ViTMAE']:.2f}x", va="center", fontsize=FONT)
            ticks[position] = "ViTMAE" if is_peer else f"C2FMAE, {100 * float(row['contender'].split()[1]):g} %"
            position += 1
        position += 0.3
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=FONT)
    axes.tick_params(axis="x", labelsize=FONT)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.16, y=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    size, batch, pixels, *_ = contents[0]["settings"].split(", ")
    machine = contents[0]["machine"]
    place = machine.get("device") or f"{machine['cores']} CPU cores"
    axes.set_xlabel("images/s of a pre-training step", fontsize=FONT)
    figure.suptitle(f"ViT-{size.title()}/16, {pixels}, {batch}, {place}", fontsize=FONT)
    save_figure(figure, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
