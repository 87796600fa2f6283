"""
Evaluate a saved encoder by the study's protocols.

    python benchmarks/representation/judge.py --data shared/data model_cards/c2fmae-vit-tiny-stl10

Writes `<output>/encoder-<name>.json`, named after the encoder's folder, or after the run if that is `<run>/encoder`;
with `--untrained` also `encoder-untrained-<name>.json`, the scores of this architecture with random weights.
Its scores are comparable with those of the study's variants: same photographs, same probes and seeds. An encoder for
96 x 96 pixels is scored on STL-10 and Caltech-101; its patches must form a square grid whose side divides 16. One for
224 x 224 pixels is scored on scenes, in a grid whose side divides 56.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data import GRID, SCENE_STRIDE, SOURCES, load_study_data
from protocols import evaluate, summary
from transformers import set_seed


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import machine

from c2fmae_hf import C2FMAEModel
from c2fmae_hf.publishing.fingerprints import encoder_fingerprint
from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.publishing.repository import check_saved
from c2fmae_hf.utils.files import write_json


def by_name(parser: argparse.ArgumentParser, folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names, or by the run's if it is the `encoder` of one."""
    named: dict[str, Path] = {}
    for folder in map(Path.absolute, folders):
        name = folder.parent.name if folder.name == "encoder" else folder.name
        if name in named:
            parser.error(f"{folder}: expected encoders of different names, got {name} twice")
        named[name] = folder
    return named


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", type=Path, help="folders of C2FMAE's encoders or pre-training models")
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the probes and of random weights")
    parser.add_argument(
        "--untrained", action="store_true", help="also each encoder's architecture with random weights"
    )
    parser.add_argument("--fine_tune", action="store_true", help="also fine-tune each encoder for segmentation")
    parser.add_argument("--output", type=Path, default=Path("runs/representation/results"))
    args = parser.parse_args(arguments)
    cells = {"stl10": GRID, "scenes": SOURCES["scenes"].image_size // SCENE_STRIDE}
    sources = {(one.image_size, one.image_size): name for name, one in SOURCES.items()}
    encoders = {}
    for name, folder in by_name(parser, args.encoders).items():
        check_saved(str(folder))
        encoder = C2FMAEModel.from_pretrained(folder).eval()
        height, width = encoder.config.grid_size
        source = sources.get(encoder.config.image_height_width)
        if source is None or cells[source] % height or height != width:
            known = " or ".join(f"{side} x {side} pixels ({cells[name]})" for (side, _), name in sources.items())
            parser.error(
                f"{folder}: expected an encoder of {known} in a square grid of patches whose side divides the number "
                f"in brackets, got {encoder.config.image_height_width} in {height} x {width} patches"
            )
        if args.fine_tune and source == "scenes":
            parser.error(
                f"{folder}: --fine_tune: expected an encoder of 96 x 96 pixels; scenes score frozen ones only"
            )
        encoders[name] = source, encoder
        if args.untrained:
            set_seed(args.seed)
            encoders[f"untrained-{name}"] = source, C2FMAEModel(encoder.config).eval()
    data = {
        name: load_study_data(args.data, name, with_pretraining=False) for name in {s for s, _ in encoders.values()}
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name, (source, encoder) in encoders.items():
        fingerprint = encoder_fingerprint(encoder)
        judged = evaluate(encoder, data[source], args.seed, args.fine_tune)
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
