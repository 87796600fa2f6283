"""
Evaluate a saved encoder by the study's protocols.

    python benchmarks/representation/judge.py --data shared/data model_cards/c2fmae-vit-tiny-stl10

Writes `<output>/encoder-<name>.json`. Its scores are comparable with those of the study's variants: same photographs
of 96 pixels, same probes and seeds. The encoder's patches must form a square grid whose side divides 16.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data import GRID, IMAGE_SIZE, load_study_data
from protocols import evaluate, summary


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import machine

from c2fmae_hf import C2FMAEModel
from c2fmae_hf.publishing.fingerprints import encoder_fingerprint
from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.publishing.repository import check_saved
from c2fmae_hf.utils.files import write_json


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", type=Path, help="folders of C2FMAE's encoders or pre-training models")
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the probes")
    parser.add_argument("--fine_tune", action="store_true", help="also fine-tune each encoder for segmentation")
    parser.add_argument("--output", type=Path, default=Path("runs/representation/results"))
    args = parser.parse_args(arguments)
    encoders = {}
    for folder in args.encoders:
        check_saved(str(folder))
        encoder = C2FMAEModel.from_pretrained(folder).eval()
        height, width = encoder.config.grid_size
        if encoder.config.image_height_width != (IMAGE_SIZE, IMAGE_SIZE) or GRID % height or height != width:
            parser.error(
                f"{folder}: expected an encoder of {IMAGE_SIZE} x {IMAGE_SIZE} pixels in a square grid of patches "
                f"whose side divides {GRID}, got {encoder.config.image_height_width} in {height} x {width} patches"
            )
        encoders[folder.absolute().name] = encoder
    data = load_study_data(args.data, with_pretraining=False)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, encoder in encoders.items():
        fingerprint = encoder_fingerprint(encoder)
        judged = evaluate(encoder, data, args.seed, args.fine_tune)
        content = {
            "name": name,
            "encoder": fingerprint,
            "seed": args.seed,
            **judged,
            "command": hide_tokens(sys.argv),
            "machine": machine("cpu"),
        }
        write_json(args.output / f"encoder-{name}.json", content)
        print(f"{name}: {summary(judged['results'])}", flush=True)


if __name__ == "__main__":
    main()
