"""
Write the zoo's cards, one for each size, into the folder of this script.

    python model_cards/build.py

A card is made of the size's configuration and of the records in `runs/<size>/<run>/` beside this script, if there are
any: folders or files that a training script wrote. Cards are not edited: a test compares them with what this gives.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import ModelCard

from c2fmae_hf import SIZES, C2FMAEConfig
from c2fmae_hf.evidence import load_run
from c2fmae_hf.model_card import CardFacts, build_card


FACTS = CardFacts(
    data="There are no weights, and so no training data to speak of. The licence is that of the code. A card of "
    "published weights states what they were trained on, where the label maps come from, and the licences of both."
)


def build(size: str, folder: Path) -> ModelCard:
    """
    The card of a size without published weights.

    Args:
        size (`str`): Of `SIZES`.
        folder: Holds the size's records in `runs/<size>/`.
    """
    records = sorted((folder / "runs" / size).iterdir()) if (folder / "runs" / size).is_dir() else []
    return build_card(
        f"c2fmae-vit-{size}",
        C2FMAEConfig.from_size(size),
        "C2FMAEForPreTraining",
        runs=[load_run(path, f"{size}/{path.stem}") for path in records],
        facts=FACTS,
    )


def main(args: list[str] | None = None) -> list[Path]:
    """Returns the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent, help="by default this one")
    folder = parser.parse_args(args).folder
    paths = []
    for size in SIZES:
        paths.append(folder / f"c2fmae-vit-{size}.md")
        build(size, folder).save(paths[-1])
    return paths


if __name__ == "__main__":
    main()
